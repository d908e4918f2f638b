//! Encryption: what each sslmode does with which certificate, against a server with certificates of several makes. The
//! expectations are those of "SSL Mode Descriptions", "Client Verification of Server Certificates" and "Client
//! Certificates" in PostgreSQL's manual, and PostgreSQL's own client is held against them too.

use migrator_tests::cluster::as_server_user;
use migrator_tests::program::{self, find, migrator, postgresql};
use migrator_tests::*;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// On Debian's own server only: the others are built without OpenSSL.
mod each_mode_with_each_certificate {
    migrator_tests::story_on!(each_mode_with_each_certificate, pg15, 15);
}

/// Each is also the name of a role, by which its session is known.
const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

const ANYHOW: &str = "host all all all trust";
const ENCRYPTED_ONLY: &str = "hostssl all all all trust";
const PLAIN_ONLY: &str = "hostnossl all all all trust";
const CERTIFIED_ONLY: &str = "hostssl all all all trust clientcert=verify-ca";

/// A server that can change its certificate, and what its clients need.
struct Secure {
    database: Database,
    session: Session,
    folder: PathBuf,
}

impl Secure {
    async fn start(server: &Server) -> Result<Secure> {
        let cluster = server.cluster(&[]).await?;
        let database = Database::create(&cluster, true).await?;
        let session = database.connect().await?;
        let secure = Secure { session, folder: cluster.folder("tls")?, database };
        for mode in MODES {
            secure.session.run(&format!("create role \"{mode}\" login")).await?;
        }
        secure.make_certificates().await?;
        secure.set("ssl_key_file", &secure.path("server.key")).await?;
        secure.set("ssl_ca_file", &secure.path("right.crt")).await?;
        secure.set("ssl_cert_file", &secure.path("names.crt")).await?;
        secure.set("ssl", "on").await?;
        secure.admit(ANYHOW).await?;
        Ok(secure)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    async fn openssl(&self, arguments: &str) -> Result<()> {
        let program = find("openssl").context("openssl is there")?;
        let mut command = Command::from(as_server_user(&program));
        let command = command.current_dir(&self.folder).args(arguments.split(' '));
        program::run(command).await?.fine().map(drop).with_context(|| format!("openssl {arguments}"))
    }

    async fn make_certificates(&self) -> Result<()> {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        // The wrong authority calls itself by the same name.
        for authority in ["right", "wrong"] {
            let names = format!("-subj /CN=authority -keyout {authority}.key -out {authority}.crt");
            self.openssl(&format!("req -x509 -days 2 {key} {names}")).await?;
        }
        let names = "subjectAltName = DNS:db.example.test, DNS:*.wild.example.test, IP:127.0.0.1\n";
        std::fs::write(self.folder.join("names.ext"), names)?;
        let sign = "-CA right.crt -CAkey right.key -CAcreateserial -days 2";
        for (name, subject) in [("server", "db.example.test"), ("names", "subject.example.test"), ("client", "client")]
        {
            // One key does for all certificates of the server.
            let key = match name {
                "names" => "-new -key server.key".to_owned(),
                _ => format!("{key} -keyout {name}.key"),
            };
            self.openssl(&format!("req {key} -subj /CN={subject} -out {name}.csr")).await?;
        }
        // The commands of the manual: from a request without any alternative names, and of its own authority.
        self.openssl(&format!("x509 -req -in server.csr {sign} -out subject.crt")).await?;
        self.openssl("req -x509 -new -key server.key -days 2 -subj /CN=db.example.test -out self.crt").await?;
        self.openssl(&format!("x509 -req -in names.csr {sign} -extfile names.ext -out names.crt")).await?;
        self.openssl(&format!("x509 -req -in client.csr {sign} -out client.crt")).await?;

        let home = self.folder.join("home/.postgresql");
        std::fs::create_dir_all(&home)?;
        std::fs::copy(self.path("wrong.crt"), home.join("root.crt"))?;
        std::fs::create_dir_all(self.folder.join("revoking/.postgresql"))?;
        for file in ["root.crt", "root.crl"] {
            std::fs::copy(self.path("right.crt"), self.folder.join("revoking/.postgresql").join(file))?;
        }
        Ok(())
    }

    async fn set(&self, name: &str, value: &str) -> Result<()> {
        Ok(self.session.run(&format!("alter system set {name} = '{value}'")).await.map(drop)?)
    }

    /// From now on clients that come by TCP are admitted so; settings that were made count as well.
    async fn admit(&self, rule: &str) -> Result<()> {
        let file = self.session.value("show hba_file").await?;
        self.session.run(&format!("copy (values ('local all all trust'), ('{rule}')) to '{file}'")).await?;
        let loaded = self.session.value("select pg_conf_load_time()").await?;
        self.session.run("select pg_reload_conf()").await?;
        let deadline = Instant::now() + Duration::from_secs(20);
        // A session that begins after the server's first process has read its files is of the new kind.
        let newer = format!("select pg_conf_load_time() > '{loaded}'");
        while self.database.connect().await?.value(&newer).await? != "t" {
            ensure!(Instant::now() < deadline, "the server does not read its files again");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn certificate(&self, name: &str) -> Result<()> {
        self.set("ssl_cert_file", &self.path(name)).await?;
        self.admit(ANYHOW).await
    }

    /// A connection string without a mode: whatever it is called, the server is reached by its address.
    fn to(&self, host: &str, root: &str) -> String {
        let port = self.database.cluster().port;
        let root = match root {
            "" => String::new(),
            "system" => "sslrootcert=system".to_owned(),
            file => format!("sslrootcert={}", self.path(file)),
        };
        format!("host={host} hostaddr=127.0.0.1 port={port} dbname={} {root}", self.database.name)
    }

    /// Insists on what becomes of a connection in each of these modes: `tls`, `plain`, or `no` connection.
    async fn expect(&self, what: &str, target: &str, modes: &[&str], expected: &str) -> Result<()> {
        self.expect_at(what, target, "nowhere", modes, expected).await
    }

    async fn expect_at(&self, what: &str, target: &str, home: &str, modes: &[&str], expected: &str) -> Result<()> {
        let home = self.folder.join(home);
        let ours = self.of_the_agent(target, &home, modes).await.with_context(|| what.to_owned())?;
        ensure!(ours == expected, "{what}: {modes:?} should be {expected}, and the agent makes {ours} of it");
        // libpq knows `system` since 16.
        if !target.contains("system") && home != self.folder.join("revoking") {
            let theirs = self.of_psql(target, &home, modes).await?;
            ensure!(theirs == expected, "{what}: {modes:?} should be {expected}, and psql makes {theirs} of it");
        }
        Ok(())
    }

    fn at(&self, mut command: Command, home: &Path) -> Command {
        let trusted = home.join("system.crt");
        command.env_clear().env("HOME", home).env("SSL_CERT_FILE", trusted).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Holds what `list` reads, so that its sessions are there to be looked at.
    async fn of_the_agent(&self, target: &str, home: &Path, modes: &[&str]) -> Result<String> {
        let holder = self.database.connect().await?;
        holder.run("begin; lock table migrator.change in access exclusive mode").await?;
        let mut children = Vec::new();
        for mode in modes {
            let mut command = self.at(Command::new(migrator()?), home);
            command.args(["list", "--database", &format!("{target} user={mode} sslmode={mode}")]);
            children.push(command.spawn()?);
        }
        let waiting = "select a.usename, s.ssl from pg_stat_activity a join pg_stat_ssl s using (pid)
                       where a.application_name = 'migrator:list' and a.wait_event_type = 'Lock'";
        let deadline = Instant::now() + Duration::from_secs(8);
        let seen = loop {
            let ended = children.iter_mut().map(|child| Ok(usize::from(child.try_wait()?.is_some())));
            let ended = ended.sum::<Result<usize>>()?;
            let seen = self.session.rows(waiting).await?;
            if seen.len() + ended == modes.len() {
                break seen;
            }
            ensure!(Instant::now() < deadline, "{ended} ended and {seen:?} connected, out of {modes:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        holder.run("rollback").await?;
        let mut outcomes = Vec::new();
        for (mode, child) in modes.iter().zip(children) {
            let output = child.wait_with_output().await?;
            let said = String::from_utf8_lossy(&output.stderr);
            let encrypted = seen.iter().find(|row| row[0].as_deref() == Some(mode)).map(|row| row[1].as_deref());
            outcomes.push(match (encrypted, output.status.code()) {
                (Some(Some("t")), Some(0)) => "tls",
                (Some(Some("f")), Some(0)) => "plain",
                (None, Some(2)) if said.starts_with("error: ") => "no",
                _ => bail!("{mode}: {encrypted:?}, {}: {said}", output.status),
            });
        }
        Ok(outcomes.join(" "))
    }

    async fn of_psql(&self, target: &str, home: &Path, modes: &[&str]) -> Result<String> {
        let mut children = Vec::new();
        for mode in modes {
            let mut command = self.at(postgresql(&self.database, "psql"), home);
            command.args(["-X", "-A", "-t", "-c", "select ssl from pg_stat_ssl where pid = pg_backend_pid()"]);
            children.push(command.args(["-d", &format!("{target} user={mode} sslmode={mode}")]).spawn()?);
        }
        let mut outcomes = Vec::new();
        for child in children {
            let output = child.wait_with_output().await?;
            outcomes.push(match (output.status.success(), output.stdout.first()) {
                (true, Some(b't')) => "tls",
                (true, _) => "plain",
                (false, _) => "no",
            });
        }
        Ok(outcomes.join(" "))
    }
}

async fn each_mode_with_each_certificate(server: Server) -> Result<()> {
    if find("openssl").is_none() {
        story::skipped("sslmode on 15", "the program openssl is not installed");
        return Ok(());
    }
    let secure = Secure::start(&server).await?;
    if secure.session.value("show ssl_library").await? != "OpenSSL" {
        story::skipped("sslmode on 15", "this PostgreSQL is built without OpenSSL");
        return Ok(());
    }
    let (right, other) = ("db.example.test", "other.example.test");
    let all = &MODES[..];

    //                                      disable allow prefer require verify-ca verify-full
    for (what, host, root, expected) in [
        ("no root, right host", right, "none.crt", "plain plain tls tls no no"),
        ("no root, other host", other, "none.crt", "plain plain tls tls no no"),
        ("right root, right host", right, "right.crt", "plain plain tls tls tls tls"),
        ("right root, other host", other, "right.crt", "plain plain tls tls tls no"),
        // With a root that did not sign, TLS fails, and `prefer` goes on without it.
        ("wrong root, right host", right, "wrong.crt", "plain plain plain no no no"),
        ("wrong root, other host", other, "wrong.crt", "plain plain plain no no no"),
    ] {
        secure.expect(what, &secure.to(host, root), all, expected).await?;
    }
    for (what, host, expected) in [
        ("a wildcard", "a.wild.example.test", "tls"),
        ("a wildcard for two labels", "a.b.wild.example.test", "no"),
        ("an address", "127.0.0.1", "tls"),
        ("another address", "127.0.0.2", "no"),
        ("the subject of a certificate with other names", "subject.example.test", "no"),
    ] {
        secure.expect(what, &secure.to(host, "right.crt"), &["verify-full"], expected).await?;
    }
    let unnamed = secure.to("", "right.crt").replace("host= ", "");
    secure.expect("an address without a name", &unnamed, &["verify-ca", "verify-full"], "tls no").await?;

    // Where the files are looked for when nobody says so.
    let silent = secure.to(right, "");
    secure.expect("no home", &silent, &MODES[2..], "tls tls no no").await?;
    secure.expect_at("a wrong root in ~/.postgresql", &silent, "home", &MODES[2..], "plain no no no").await?;
    secure.expect_at("a list of revoked certificates", &silent, "revoking", &MODES[..3], "plain no no").await?;
    std::fs::create_dir_all(secure.folder.join("trusting"))?;
    std::fs::copy(secure.path("right.crt"), secure.path("trusting/system.crt"))?;
    let system = secure.to(right, "system");
    secure.expect_at("the system's roots", &system, "trusting", &MODES[2..], "no no no tls").await?;
    secure.expect_at("the system has none", &system, "nowhere", &MODES[5..], "no").await?;

    // A client's certificate, and a server that wants one.
    let with = |certificate: &str, key: &str| {
        format!("{silent} sslcert={} sslkey={}", secure.path(certificate), secure.path(key))
    };
    secure.expect("no such client certificate", &with("none.crt", "none.key"), &MODES[2..4], "tls tls").await?;
    secure.expect("no key to it", &with("client.crt", "none.key"), &MODES[2..4], "plain no").await?;
    std::fs::copy(secure.path("client.key"), secure.path("open.key"))?;
    program::run(Command::new("chmod").args(["644", &secure.path("open.key")])).await?.fine()?;
    secure.expect("a key that all may read", &with("client.crt", "open.key"), &MODES[2..4], "plain no").await?;
    secure.admit(CERTIFIED_ONLY).await?;
    secure.expect("the server wants a certificate", &silent, &MODES[..4], "no no no no").await?;
    let certified = with("client.crt", "client.key");
    secure.expect("and gets it", &certified, &MODES[..4], "no tls tls tls").await?;

    secure.admit(ENCRYPTED_ONLY).await?;
    secure.expect("the server insists", &secure.to(right, "right.crt"), all, "no tls tls tls tls tls").await?;
    secure.expect("and has a wrong root", &secure.to(right, "wrong.crt"), all, "no no no no no no").await?;
    secure.admit(PLAIN_ONLY).await?;
    secure.expect("the server refuses", &secure.to(right, "right.crt"), all, "plain plain plain no no no").await?;

    // As in the manual: the subject names the host. Such a certificate may be of version 1.
    secure.certificate("subject.crt").await?;
    for (what, host, root, expected) in [
        ("a subject, right root", right, "right.crt", "plain plain tls tls tls tls"),
        ("a subject, other host", other, "right.crt", "plain plain tls tls tls no"),
        ("a subject, wrong root", right, "wrong.crt", "plain plain plain no no no"),
        ("a subject, no root", right, "none.crt", "plain plain tls tls no no"),
    ] {
        secure.expect(what, &secure.to(host, root), all, expected).await?;
    }
    secure.set("ssl_max_protocol_version", "TLSv1.2").await?;
    secure.admit(ANYHOW).await?;
    secure.expect("a subject, TLS 1.2", &secure.to(right, "right.crt"), &MODES[3..], "tls tls tls").await?;
    secure.certificate("self.crt").await?;
    secure.expect("its own root", &secure.to(right, "self.crt"), &MODES[3..], "tls tls tls").await?;
    secure.expect("not its root", &secure.to(right, "right.crt"), &MODES[2..4], "plain no").await?;

    secure.set("ssl", "off").await?;
    secure.admit(ANYHOW).await?;
    secure.expect("the server cannot", &secure.to(right, "right.crt"), all, "plain plain plain no no no").await
}

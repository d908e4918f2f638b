//! A PostgreSQL server of its own, in a folder of its own, gone when it is no longer needed, whatever ends the tests.

use crate::servers::{target, top};
use crate::{Result, Server, Session};
use anyhow::{Context, bail, ensure};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;

/// Settings that every cluster of the tests has. Durability is off: a test that crashes a server turns it on.
const SETTINGS: [(&str, &str); 14] = [
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("wal_level", "logical"),
    ("max_wal_size", "4GB"),
    ("shared_buffers", "128MB"),
    ("max_connections", "100"),
    ("max_prepared_transactions", "20"),
    ("autovacuum_naptime", "5s"),
    ("log_min_messages", "warning"),
    ("log_line_prefix", "%m [%p] %q%a "),
    ("log_lock_waits", "on"),
    ("timezone", "UTC"),
    ("restart_after_crash", "on"),
];

/// Settings with which an acknowledged commit survives a kill -9 of everything.
pub const DURABLE: [(&str, &str); 3] = [("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on")];

/// A running server.
///
/// A watcher process stops the server and removes its folder as soon as this value is dropped or this process
/// ends in any way: it waits for the end of a pipe that only this process holds.
pub struct Cluster {
    /// What runs.
    pub server: Server,
    /// TCP port on 127.0.0.1, and part of the socket's name.
    pub port: u16,
    home: PathBuf,
    watcher: Mutex<Option<Child>>,
}

impl Cluster {
    /// Makes and starts a server with these settings on top of the usual ones.
    pub async fn start(server: &Server, settings: &[(&str, &str)]) -> Result<Cluster> {
        let server = server.clone();
        let settings: Vec<(String, String)> =
            SETTINGS.iter().chain(settings).map(|(name, value)| (name.to_string(), value.to_string())).collect();
        spawn_blocking(move || Cluster::make(server, &settings)).await?
    }

    fn make(server: Server, settings: &[(String, String)]) -> Result<Cluster> {
        let cluster = Cluster::empty(server)?;
        new_data(&cluster.server, &cluster.data())?;
        cluster.configure(settings)?;
        cluster.boot()?;
        Ok(cluster)
    }

    /// A folder and a port, and nothing in it yet.
    fn empty(server: Server) -> Result<Cluster> {
        let home = new_home()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Cluster { watcher: Mutex::new(Some(watch(&server, &home)?)), server, port, home })
    }

    /// Appends settings to those that the data folder has; the last of a name counts.
    fn configure(&self, settings: &[(String, String)]) -> Result<()> {
        let mut conf = format!(
            "\nunix_socket_directories = '{}'\nlisten_addresses = '127.0.0.1'\nport = {}\n",
            self.home.display(),
            self.port
        );
        for (name, value) in settings {
            conf.push_str(&format!("{name} = '{value}'\n"));
        }
        let path = self.data().join("postgresql.conf");
        let text = std::fs::read_to_string(&path)? + &conf;
        Ok(std::fs::write(&path, text)?)
    }

    /// A standby of this server, streaming from it, with its settings.
    pub async fn standby(&self) -> Result<Cluster> {
        self.standby_of(&self.server).await
    }

    /// The same with the programs and libraries of another installation.
    pub async fn standby_of(&self, server: &Server) -> Result<Cluster> {
        let (server, primary, port) = (server.clone(), self.home.clone(), self.port.to_string());
        spawn_blocking(move || {
            let standby = Cluster::empty(server)?;
            let copied = as_server_user(&standby.server.program("pg_basebackup"))
                .args(["-D", &standby.data().to_string_lossy(), "-h", &primary.to_string_lossy(), "-p", &port])
                .args(["-U", "postgres", "-R", "-X", "stream", "-c", "fast"])
                .output()?;
            ensure!(copied.status.success(), "pg_basebackup fails: {}", String::from_utf8_lossy(&copied.stderr));
            standby.configure(&[])?;
            standby.boot()?;
            Ok(standby)
        })
        .await?
    }

    /// Waits until this standby has replayed what the other server has written so far: with `synchronous_commit = on`, all
    /// that was committed.
    pub async fn follows(&self, primary: &Cluster) -> Result<()> {
        let written = primary.connect("postgres").await?.value("select pg_current_wal_lsn()").await?;
        let session = self.connect("postgres").await?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while session.value(&format!("select pg_last_wal_replay_lsn() >= '{written}'")).await? != "t" {
            ensure!(Instant::now() < deadline, "the standby does not follow:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// This standby receives nothing any more: what the other server commits from now on, a failover loses.
    pub async fn cut_off(&self) -> Result<()> {
        let session = self.connect("postgres").await?;
        session.run("alter system reset primary_conninfo").await?;
        session.run("select pg_reload_conf()").await?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while session.number("select count(*) from pg_stat_wal_receiver").await? > 0 {
            ensure!(Instant::now() < deadline, "the standby goes on receiving");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Makes this standby a server that takes writes.
    pub async fn promote(&self) -> Result<()> {
        let promoted = self.connect("postgres").await?.value("select pg_promote()").await?;
        ensure!(promoted == "t", "the standby is not promoted:\n{}", self.log());
        Ok(())
    }

    /// The folder with the server's socket.
    pub fn socket_folder(&self) -> &Path {
        &self.home
    }

    /// A folder inside the cluster's, which goes with it.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.home.join(name);
        std::fs::create_dir_all(&folder)?;
        give_to_server_user(&folder)?;
        Ok(folder)
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    fn boot(&self) -> Result<()> {
        let log = self.home.join("log");
        let started = as_server_user(&self.server.program("pg_ctl"))
            .args(["-D", &self.data().to_string_lossy(), "-l", &log.to_string_lossy(), "-t", "120", "-w", "start"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        ensure!(started.success(), "the server does not start:\n{}", self.log());
        Ok(())
    }

    /// What the server wrote to its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    /// The process id of the server's first process.
    pub fn postmaster(&self) -> Result<i32> {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid"))?;
        Ok(text.lines().next().context("postmaster.pid is empty")?.trim().parse()?)
    }

    /// kill -9 of every process of the server at once, as when the machine's power goes, and a new start.
    pub async fn crash(&self) -> Result<()> {
        self.die().await?;
        let deadline = Instant::now() + Duration::from_secs(30);
        // A backend that was just being started may have escaped; it ends by itself, and until then no server starts.
        while let Err(error) = self.boot() {
            ensure!(Instant::now() < deadline, error);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// The same without a new start.
    pub async fn die(&self) -> Result<()> {
        let postmaster = self.postmaster()?;
        let mut all = children_of(postmaster);
        all.insert(0, postmaster);
        kill_nine(&all)?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while all.iter().any(|pid| is_running(*pid)) {
            ensure!(Instant::now() < deadline, "killed processes of the server do not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Waits until the server takes connections.
    pub async fn wait_until_up(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.connect("postgres").await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => bail!("the server does not come back: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// A session of the superuser.
    pub async fn connect(&self, database: &str) -> Result<Session> {
        Ok(Session::open(&self.home, self.port, database, "postgres", "test").await?)
    }

    /// The environment with which PostgreSQL's own programs find this server.
    pub fn environment(&self, database: &str) -> Vec<(&'static str, String)> {
        vec![
            ("PGHOST", self.home.display().to_string()),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", "postgres".to_owned()),
            ("PGDATABASE", database.to_owned()),
        ]
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Ok(Some(mut watcher)) = self.watcher.lock().map(|mut watcher| watcher.take()) {
            drop(watcher.stdin.take());
            let _ = watcher.wait();
        }
    }
}

/// A folder that the server's user owns. Under /tmp whatever TMPDIR says: the path of a socket may have 107 bytes at most.
fn new_home() -> Result<PathBuf> {
    let home = tempfile::Builder::new().prefix("migrator-test.").tempdir_in("/tmp")?.keep();
    give_to_server_user(&home)?;
    Ok(home)
}

fn give_to_server_user(folder: &Path) -> Result<()> {
    let name = Command::new(top().join("tools/as-server-user")).arg("--name").output()?.stdout;
    let owned = Command::new("chown").arg(String::from_utf8(name)?.trim()).arg(folder).status()?;
    let open = Command::new("chmod").arg("711").arg(folder).status()?;
    ensure!(owned.success() && open.success(), "{} cannot be given to the server's user", folder.display());
    Ok(())
}

/// The process that cleans up: it outlives this one, in a session of its own so that Ctrl-C does not reach it.
fn watch(server: &Server, home: &Path) -> Result<Child> {
    let script = r#"
        read -r _
        "$1" "$2" -D "$3/data" -m immediate -w stop
        rm -rf "$3"
    "#;
    Command::new("setsid")
        .args(["bash", "-c", script, "watcher"])
        .args([&top().join("tools/as-server-user"), &server.program("pg_ctl"), home])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("the watcher cannot be started")
}

/// Fills a data folder: a copy of one that initdb made once for this server, or initdb itself the first time.
fn new_data(server: &Server, data: &Path) -> Result<()> {
    let made = std::fs::metadata(server.program("initdb"))?.modified()?;
    let stamp = made.duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let template = target().join("test-servers").join(format!("pg{}-{stamp}", server.major));
    if !template.exists() {
        let output = as_server_user(&server.program("initdb"))
            .args(["-D", &data.to_string_lossy()])
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"])
            .output()?;
        ensure!(output.status.success(), "initdb fails: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::create_dir_all(target().join("test-servers"))?;
        let new = template.with_extension(format!("new{}", std::process::id()));
        ensure!(copied(data, &new)?, "the template cannot be copied");
        // Another process may have been faster: its template is as good.
        if std::fs::rename(&new, &template).is_err() {
            std::fs::remove_dir_all(&new)?;
        }
        return Ok(());
    }
    ensure!(copied(&template, data)?, "the template cannot be copied");
    Ok(())
}

fn copied(from: &Path, to: &Path) -> Result<bool> {
    Ok(Command::new("cp").arg("-a").arg(from).arg(to).status()?.success())
}

/// A command that runs as a user that PostgreSQL accepts to run as.
pub fn as_server_user(program: &Path) -> Command {
    let mut command = Command::new(top().join("tools/as-server-user"));
    command.arg(program);
    command
}

/// One that ended by itself between the look and the kill is no fault: the caller waits for the end of all.
fn kill_nine(pids: &[i32]) -> Result<()> {
    Command::new("kill").arg("-9").args(pids.iter().map(i32::to_string)).stderr(Stdio::null()).status()?;
    Ok(())
}

fn stat_of(pid: i32) -> Option<(char, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = stat[stat.rfind(')')? + 1..].split_whitespace();
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

fn is_running(pid: i32) -> bool {
    stat_of(pid).is_some_and(|(state, _)| state != 'Z')
}

fn children_of(parent: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| stat_of(*pid).is_some_and(|(_, of)| of == parent))
        .collect()
}

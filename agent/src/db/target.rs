//! Where to connect, and how: a connection string completed from a service file, the environment and defaults,
//! in libpq's order of precedence, with every value checked.

use super::conninfo::{self, Bad, Settings};
use super::keyword::{KEYWORDS, Regard};
use super::passfile::{self, Wanted};
use super::tls::{Negotiation, Roots, SslMode, Tls};
use super::{Secret, Surroundings, servicefile};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One place where the server may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A host by name or address; `name` is what a certificate must be for.
    Tcp {
        /// What was given as host, or else the address.
        name: String,
        /// The address to use instead of asking for the name's.
        address: Option<IpAddr>,
    },
    /// A socket's directory.
    Unix(PathBuf),
}

/// A place, its port, and the password for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where.
    pub place: Place,
    /// Which port; for a socket, the number in its name.
    pub port: u16,
    /// The password, if there is one.
    pub password: Option<Secret>,
}

/// A database that this program can connect to. Its text form has no password.
#[derive(Debug, Clone)]
pub struct Target {
    /// Tried in this order.
    pub servers: Vec<Server>,
    /// Who connects.
    pub user: String,
    /// The database.
    pub dbname: String,
    /// Encryption.
    pub tls: Tls,
    /// Command-line options for the server process.
    pub options: Option<String>,
    /// How long one attempt may take.
    pub connect_timeout: Duration,
    /// Whether a server that accepts no writes is passed over.
    pub must_write: bool,
    /// Whether authentication must be bound to the encrypted channel.
    pub channel_binding: tokio_postgres::config::ChannelBinding,
    /// How a dead connection is noticed.
    pub liveness: Liveness,
}

/// How a dead connection is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// Whether to ask at all.
    pub on: bool,
    /// Silence before the first question.
    pub idle: Duration,
    /// Time between questions.
    pub interval: Duration,
    /// Questions without an answer.
    pub count: u32,
    /// Longest time that sent data may stay unacknowledged.
    pub user_timeout: Option<Duration>,
}

impl Target {
    /// The target that a connection string names in these surroundings. What the string lacks comes from its service,
    /// then from the environment, then from defaults.
    pub fn resolve(text: &str, around: &Surroundings) -> Result<Target, Bad> {
        let settings = complete(conninfo::parse(text)?, around)?;
        let get = |name: &str| settings.get(name).map(String::as_str);

        let user = get("user").map(str::to_owned).or_else(|| around.user.clone());
        let user = user.ok_or(Bad::Together("no user was given and the operating system names none"))?;
        let dbname = get("dbname").unwrap_or(&user).to_owned();
        let tls = tls(&settings, around)?;
        let mut servers = servers(&settings, around)?;
        let passfile = get("passfile").map(PathBuf::from).or_else(|| around.at_home(".pgpass"));
        for server in &mut servers {
            server.password = match get("password") {
                Some(password) => Some(Secret::new(password)),
                None => passfile.as_deref().and_then(|path| {
                    let host = server.name_in_passfile(around);
                    passfile::look_up(path, Wanted { host: &host, port: server.port, dbname: &dbname, user: &user })
                }),
            };
        }
        let unnamed = settings.get("host").is_none_or(|hosts| hosts.split(',').any(|host| host.trim().is_empty()));
        if tls.mode == SslMode::VerifyFull && unnamed && settings.contains_key("hostaddr") {
            return Err(Bad::Together("sslmode verify-full checks a name: give each hostaddr a host as well"));
        }
        tls.attempts(servers.iter().all(|server| matches!(server.place, Place::Unix(_))))?;
        let seconds = |name| Ok(number(&settings, name)?.map(Duration::from_secs));
        Ok(Target {
            servers,
            tls,
            options: get("options").map(str::to_owned),
            // libpq waits for ever unless told; a program that nobody watches must not. 0 is libpq's "for ever".
            connect_timeout: match number(&settings, "connect_timeout")? {
                None => Duration::from_secs(10),
                Some(0) => Duration::from_secs(24 * 3600),
                Some(seconds) => Duration::from_secs(seconds.max(2)),
            },
            must_write: match get("target_session_attrs").unwrap_or("any") {
                "any" => false,
                "read-write" | "primary" => true,
                "read-only" | "standby" | "prefer-standby" => {
                    return Err(Bad::Together("target_session_attrs asks for a standby, and this program must write"));
                }
                _ => {
                    return Err(Bad::Value { name: "target_session_attrs", expected: "any, read-write or primary" });
                }
            },
            channel_binding: match get("channel_binding").unwrap_or("prefer") {
                "disable" => tokio_postgres::config::ChannelBinding::Disable,
                "prefer" => tokio_postgres::config::ChannelBinding::Prefer,
                "require" => tokio_postgres::config::ChannelBinding::Require,
                _ => return Err(Bad::Value { name: "channel_binding", expected: "disable, prefer or require" }),
            },
            liveness: Liveness {
                on: get("keepalives") != Some("0"),
                idle: seconds("keepalives_idle")?.unwrap_or(Duration::from_secs(30)),
                interval: seconds("keepalives_interval")?.unwrap_or(Duration::from_secs(10)),
                count: number(&settings, "keepalives_count")?.unwrap_or(3),
                user_timeout: number(&settings, "tcp_user_timeout")?.map(Duration::from_millis),
            },
            user,
            dbname,
        })
    }
}

/// What the string lacks: from its service first, then from the environment.
fn complete(mut settings: Settings, around: &Surroundings) -> Result<Settings, Bad> {
    let own = |settings: &Settings, name: &str, variable| {
        settings.get(name).cloned().or_else(|| around.variable(variable).map(str::to_owned))
    };
    if let Some(service) = own(&settings, "service", "PGSERVICE") {
        let file = own(&settings, "servicefile", "PGSERVICEFILE");
        for (name, value) in servicefile::look_up(&service, file.as_deref(), around)? {
            settings.entry(name).or_insert(value);
        }
    }
    for keyword in KEYWORDS {
        let Some(value) = keyword.variable.and_then(|variable| around.variable(variable)) else { continue };
        if keyword.regard != Regard::Ignored && !settings.contains_key(keyword.name) {
            conninfo::put(&mut settings, keyword.name, value.to_owned())?;
        }
    }
    settings.retain(|_, value| !value.is_empty());
    // Older than sslmode, and libpq still obeys it where there is none.
    if !settings.contains_key("sslmode") && around.variable("PGREQUIRESSL").is_some_and(|value| value.starts_with('1'))
    {
        conninfo::put(&mut settings, "sslmode", "require".to_owned())?;
    }
    Ok(settings)
}

fn number<N: std::str::FromStr>(settings: &Settings, name: &'static str) -> Result<Option<N>, Bad> {
    let parse = |text: &String| text.trim().parse().map_err(|_| Bad::Value { name, expected: "a whole number" });
    settings.get(name).map(parse).transpose()
}

/// Hosts, addresses and ports go together by their place in their lists; one port serves all.
fn servers(settings: &Settings, around: &Surroundings) -> Result<Vec<Server>, Bad> {
    let list = |name: &str| -> Vec<&str> {
        settings.get(name).map(|text| text.split(',').map(str::trim).collect()).unwrap_or_default()
    };
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(Bad::Together("host and hostaddr have different numbers of entries"));
    }
    let count = hosts.len().max(addresses.len()).max(1);
    if ports.len() > 1 && ports.len() != count {
        return Err(Bad::Together("port has neither one entry nor one for each host"));
    }
    (0..count)
        .map(|at| {
            let entry = |list: &[&str]| list.get(at).copied().filter(|text| !text.is_empty()).map(str::to_owned);
            let port = if ports.len() == 1 { ports.first().copied() } else { ports.get(at).copied() };
            let port = port.filter(|text| !text.is_empty()).map_or(Ok(5432), str::parse);
            let port = port.ok().filter(|port| *port > 0);
            let port = port.ok_or(Bad::Value { name: "port", expected: "a number from 1 to 65535" })?;
            let address: Option<IpAddr> = entry(&addresses)
                .map(|text| text.parse())
                .transpose()
                .map_err(|_| Bad::Value { name: "hostaddr", expected: "an IP address" })?;
            let place = match (entry(&hosts), address) {
                (Some(host), None) if host.starts_with('/') => Place::Unix(PathBuf::from(host)),
                (Some(host), None) if host.starts_with('@') => {
                    return Err(Bad::Value { name: "host", expected: "a name, an address or an absolute directory" });
                }
                (Some(name), address) => Place::Tcp { name, address },
                (None, Some(address)) => Place::Tcp { name: address.to_string(), address: Some(address) },
                (None, None) => here(port, around),
            };
            Ok(Server { place, port, password: None })
        })
        .collect()
}

/// The server on this machine: by its socket where there is one.
fn here(port: u16, around: &Surroundings) -> Place {
    let socket = format!(".s.PGSQL.{port}");
    match around.socket_directories.iter().find(|directory| directory.join(&socket).exists()) {
        Some(directory) => Place::Unix(directory.clone()),
        None => Place::Tcp { name: "localhost".to_owned(), address: None },
    }
}

fn tls(settings: &Settings, around: &Surroundings) -> Result<Tls, Bad> {
    let get = |name: &str| settings.get(name).map(String::as_str);
    let system = get("sslrootcert") == Some("system");
    let mode = match get("sslmode") {
        Some(text) => SslMode::parse(text).ok_or(Bad::Value {
            name: "sslmode",
            expected: "disable, allow, prefer, require, verify-ca or verify-full",
        })?,
        None if system => SslMode::VerifyFull,
        None => SslMode::Prefer,
    };
    if system && mode != SslMode::VerifyFull {
        return Err(Bad::Together("weak sslmode may not be used with sslrootcert=system (use verify-full)"));
    }
    let negotiation = match get("sslnegotiation").unwrap_or("postgres") {
        "postgres" => Negotiation::Postgres,
        "direct" if mode >= SslMode::Require => Negotiation::Direct,
        "direct" => return Err(Bad::Together("weak sslmode may not be used with sslnegotiation=direct (use require)")),
        _ => return Err(Bad::Value { name: "sslnegotiation", expected: "postgres or direct" }),
    };
    // Whether the files are there is looked up when they are needed.
    let default = |name: &str| around.at_home(".postgresql").map(|folder| folder.join(name));
    let given = |name: &str| get(name).map(PathBuf::from);
    Ok(Tls {
        mode,
        negotiation,
        roots: match given("sslrootcert").or_else(|| default("root.crt")) {
            _ if system => Roots::System,
            Some(path) => Roots::File(path),
            None => Roots::Nowhere,
        },
        revoked: default("root.crl"),
        certificate: given("sslcert").or_else(|| default("postgresql.crt")),
        key: given("sslkey").or_else(|| default("postgresql.key")),
        server_name: get("sslsni").is_none_or(|value| value.starts_with('1')),
    })
}

impl Server {
    /// libpq looks up `localhost` for the default socket directory.
    fn name_in_passfile(&self, around: &Surroundings) -> String {
        let is_default = |path: &Path| around.socket_directories.iter().any(|directory| directory == path);
        match &self.place {
            Place::Tcp { name, .. } => name.clone(),
            Place::Unix(path) if is_default(path) => "localhost".to_owned(),
            Place::Unix(path) => path.display().to_string(),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp { name, .. } if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Place::Tcp { name, .. } => write!(f, "{name}:{}", self.port),
            Place::Unix(path) => write!(f, "{}:{}", path.display(), self.port),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<String> = self.servers.iter().map(Server::to_string).collect();
        write!(f, "database \"{}\" at {} as {}", self.dbname, servers.join(", "), self.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(variables: &[(&str, &str)]) -> Surroundings {
        Surroundings {
            variables: variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            user: Some("os".to_owned()),
            socket_directories: vec![PathBuf::from("/nowhere/run")],
        }
    }

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("migrator-target-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn nothing_given_means_the_server_here() {
        let target = Target::resolve("", &around(&[])).unwrap();
        assert_eq!(target.to_string(), "database \"os\" at localhost:5432 as os");
        let home = scratch("socket");
        std::fs::write(home.join(".s.PGSQL.7000"), "").unwrap();
        let place = Surroundings { socket_directories: vec![home.clone()], ..around(&[("PGPORT", "7000")]) };
        assert_eq!(Target::resolve("", &place).unwrap().servers[0].place, Place::Unix(home.clone()));
        std::fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn the_string_beats_the_service_which_beats_the_environment() {
        let home = scratch("service");
        let file = home.join("services");
        std::fs::write(&file, "[shop]\nhost=service\nport=1\nuser=service\n").unwrap();
        let place = around(&[
            ("PGSERVICEFILE", file.to_str().unwrap()),
            ("PGSERVICE", "shop"),
            ("PGHOST", "environment"),
            ("PGUSER", "environment"),
            ("PGDATABASE", "environment"),
            ("PGPASSWORD", "hunter2"),
        ]);
        let target = Target::resolve("user=string", &place).unwrap();
        assert_eq!(target.to_string(), "database \"environment\" at service:1 as string");
        assert_eq!(target.servers[0].password, Some(Secret::new("hunter2")));
        assert!(!format!("{target:?}").contains("hunter2"));
        assert_eq!(
            Target::resolve("service=none", &place).unwrap_err().to_string(),
            "definition of service \"none\" not found"
        );
        std::fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn lists_of_hosts_go_with_lists_of_ports() {
        let servers = |text: &str| {
            let target = Target::resolve(text, &around(&[]))?;
            Ok::<_, Bad>(target.servers.iter().map(Server::to_string).collect::<Vec<_>>())
        };
        assert_eq!(servers("host=a,/tmp port=1,2").unwrap(), ["a:1", "/tmp:2"]);
        assert_eq!(servers("postgres://a:1,[::1]/x").unwrap(), ["a:1", "[::1]:5432"]);
        assert_eq!(servers("host=a,b port=6").unwrap(), ["a:6", "b:6"]);
        assert_eq!(servers("hostaddr=127.0.0.1").unwrap(), ["127.0.0.1:5432"]);
        assert!(servers("host=a,b,c port=1,2").is_err());
        assert!(servers("host=a port=0").is_err() && servers("host=a port=x").is_err());
        assert!(servers("host=a hostaddr=b").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn each_server_has_its_own_password() {
        use std::os::unix::fs::PermissionsExt;
        let home = scratch("pass");
        let file = home.join(".pgpass");
        std::fs::write(&file, "a:*:*:me:one\nlocalhost:*:shop:me:two\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let target =
            Target::resolve("host=a,b,/nowhere/run dbname=shop user=me", &around(&[("HOME", home.to_str().unwrap())]));
        let passwords: Vec<_> = target.unwrap().servers.into_iter().map(|server| server.password).collect();
        assert_eq!(passwords, [Some(Secret::new("one")), None, Some(Secret::new("two"))]);
        std::fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn sslmode_and_its_companions() {
        let tls = |text: &str, variables: &[(&str, &str)]| Target::resolve(text, &around(variables)).map(|t| t.tls);
        assert!(tls("host=db sslmode=verify-ca", &[]).is_err(), "nobody to trust");
        assert!(tls("host=/run sslmode=verify-ca", &[]).is_ok(), "a socket needs nobody");
        assert_eq!(tls("", &[]).unwrap().mode, SslMode::Prefer);
        let ca = format!("sslrootcert='{}'", std::env::current_exe().unwrap().display());
        assert_eq!(tls(&ca, &[("PGSSLMODE", "verify-ca")]).unwrap().mode, SslMode::VerifyCa);
        assert_eq!(tls("sslmode=disable", &[("PGSSLMODE", "require")]).unwrap().mode, SslMode::Disable);
        assert_eq!(tls("sslrootcert=system", &[]).unwrap().mode, SslMode::VerifyFull);
        assert!(tls("sslrootcert=system sslmode=require", &[]).is_err());
        assert!(tls("sslmode=maybe", &[]).is_err());
        assert!(tls("sslnegotiation=direct", &[]).is_err());
        assert!(tls("hostaddr=127.0.0.1 sslrootcert=system", &[]).is_err(), "no name to check");
        assert!(tls("host=db hostaddr=127.0.0.1 sslrootcert=system", &[]).is_ok());
        assert!(tls("sslcrl=/list", &[]).is_err() && tls("", &[("PGSSLCRLDIR", "/lists")]).is_err());
        assert_eq!(tls("", &[("PGREQUIRESSL", "1")]).unwrap().mode, SslMode::Require);
        assert_eq!(tls("", &[("PGREQUIRESSL", "1"), ("PGSSLMODE", "disable")]).unwrap().mode, SslMode::Disable);
        assert!(!tls("sslsni=0", &[]).unwrap().server_name && tls("", &[]).unwrap().server_name);
        assert_eq!(tls("", &[("PGSSLROOTCERT", "/r")]).unwrap().roots, Roots::File(PathBuf::from("/r")));
        assert_eq!(tls("", &[]).unwrap().roots, Roots::Nowhere);
        let home = PathBuf::from("/nowhere/.postgresql/root.crt");
        assert_eq!(tls("", &[("HOME", "/nowhere")]).unwrap().roots, Roots::File(home));
        let refused = tls("host=db sslmode=verify-full sslrootcert=/nowhere/ca", &[]).unwrap_err().to_string();
        assert!(refused.contains("/nowhere/ca") && refused.contains("sslrootcert=system"), "{refused}");
    }
}

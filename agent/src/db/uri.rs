//! Connection URIs: `postgresql://[user[:password]@][host[:port][,…]][/dbname][?keyword=value&…]`.

use super::conninfo::{Bad, Settings, put};

/// Whether a text is meant as a URI.
pub fn is_uri(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

/// The settings of a URI. Errors never quote a value: it may be a password.
pub fn parse(text: &str) -> Result<Settings, Bad> {
    let rest = text.split_once("://").ok_or(Bad::Syntax("a URI begins with postgresql://"))?.1;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    // The last @ before a slash: a password with an @ that nobody percent-encoded works all the same.
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut settings = Settings::new();
    let hosts = match authority.rsplit_once('@') {
        Some((login, hosts)) => {
            let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
            put_if_any(&mut settings, "user", user)?;
            if let Some(password) = password {
                put(&mut settings, "password", decode(password)?)?;
            }
            hosts
        }
        None => authority,
    };
    if !hosts.is_empty() {
        let pairs = hosts.split(',').map(host_and_port).collect::<Result<Vec<_>, _>>()?;
        let join = |pick: fn(&(String, String)) -> &str| pairs.iter().map(pick).collect::<Vec<_>>().join(",");
        put(&mut settings, "host", join(|pair| &pair.0))?;
        if pairs.iter().any(|pair| !pair.1.is_empty()) {
            put(&mut settings, "port", join(|pair| &pair.1))?;
        }
    }
    put_if_any(&mut settings, "dbname", path)?;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or(Bad::Syntax("a parameter of a URI is keyword=value"))?;
        let (name, value) = (decode(name)?, decode(value)?);
        // JDBC's way to say it, which libpq accepts too.
        if name == "ssl" && value == "true" {
            put(&mut settings, "sslmode", "require".to_owned())?;
        } else {
            put(&mut settings, &name, value)?;
        }
    }
    settings.retain(|_, value| !value.is_empty());
    Ok(settings)
}

fn put_if_any(settings: &mut Settings, name: &str, raw: &str) -> Result<(), Bad> {
    if raw.is_empty() { Ok(()) } else { put(settings, name, decode(raw)?) }
}

/// `host:port`, `[::1]:port`, `%2Fvar%2Frun:port`; either part may be missing.
fn host_and_port(text: &str) -> Result<(String, String), Bad> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or(Bad::Syntax("an IPv6 address lacks its closing bracket"))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, port),
                None if rest.is_empty() => (host, ""),
                None => return Err(Bad::Syntax("something other than a port follows an IPv6 address")),
            }
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    Ok((decode(host)?, decode(port)?))
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String, Bad> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
            let value = hex.and_then(|two| u8::from_str_radix(two, 16).ok()).filter(|value| *value != 0);
            bytes.push(value.ok_or(Bad::Syntax("a percent sign in a URI begins two hexadecimal digits, not %00"))?);
            rest = &tail[2..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).map_err(|_| Bad::Syntax("a URI decodes to something that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn owned(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_part_of_a_uri() {
        assert_eq!(
            pairs("postgresql://me:p%40ss%3A@db1:1234,db2,[::1]:5433/my%20db?sslmode=verify-full&connect_timeout=3"),
            owned(&[
                ("connect_timeout", "3"),
                ("dbname", "my db"),
                ("host", "db1,db2,::1"),
                ("password", "p@ss:"),
                ("port", "1234,,5433"),
                ("sslmode", "verify-full"),
                ("user", "me"),
            ])
        );
        assert_eq!(pairs("postgres://"), vec![]);
        assert_eq!(pairs("postgres:///x?host=/tmp&port=1"), owned(&[("dbname", "x"), ("host", "/tmp"), ("port", "1")]));
        assert_eq!(pairs("postgres://%2Ftmp/x"), owned(&[("dbname", "x"), ("host", "/tmp")]));
        assert_eq!(pairs("postgres://db?ssl=true"), owned(&[("host", "db"), ("sslmode", "require")]));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for text in [
            "postgres://me:hunter2%zz@db",
            "postgres://me:hunter2@[::1/x",
            "postgres://me:hunter2@db?oops",
            "postgres://me:hunter2@db?no_such=1",
            "postgres://me:%00hunter2@db",
        ] {
            assert!(!parse(text).unwrap_err().to_string().contains("hunter2"));
        }
    }
}

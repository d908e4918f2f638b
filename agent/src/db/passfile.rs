//! The password file: `host:port:database:user:password` a line, `*` for any, the first line that fits counts.

use super::Secret;
use std::path::Path;
use tracing::warn;

/// What a password is looked up by.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Host name, address or socket directory; `localhost` for the default socket directory.
    pub host: &'a str,
    /// Port.
    pub port: u16,
    /// Database.
    pub dbname: &'a str,
    /// User.
    pub user: &'a str,
}

/// The password that the file has for this login. A file that others may read is left alone, with a warning, as libpq
/// leaves it; one that does not exist has no password.
pub fn look_up(path: &Path, wanted: Wanted<'_>) -> Option<Secret> {
    let about = std::fs::metadata(path).ok()?;
    if !about.is_file() {
        warn!(path = %path.display(), "password file is not a plain file");
        return None;
    }
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&about.permissions()) & 0o077 != 0 {
        warn!(path = %path.display(), "password file may be read by others and is not used: chmod 0600");
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| fits(line, wanted)).map(Secret::new)
}

fn fits(line: &str, wanted: Wanted<'_>) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = fields(line).into_iter();
    let port = wanted.port.to_string();
    for value in [wanted.host, &port, wanted.dbname, wanted.user] {
        let field = fields.next()?;
        if field.raw != "*" && field.text != value {
            return None;
        }
    }
    fields.next().map(|field| field.text).filter(|password| !password.is_empty())
}

struct Field {
    raw: String,
    text: String,
}

/// Splits at colons that no backslash precedes. A fifth colon ends the password, as in libpq.
fn fields(line: &str) -> Vec<Field> {
    let mut fields = vec![Field { raw: String::new(), text: String::new() }];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let last = fields.last_mut().expect("there is always a field");
        match c {
            ':' => fields.push(Field { raw: String::new(), text: String::new() }),
            '\\' => {
                last.raw.push(c);
                let next = chars.next();
                last.raw.extend(next);
                last.text.extend(next);
            }
            c => {
                last.raw.push(c);
                last.text.push(c);
            }
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Option<String> {
        fits(line, Wanted { host: "db", port: 5432, dbname: "shop", user: "me" })
    }

    #[test]
    fn lines_fit_by_all_four_fields() {
        assert_eq!(found("db:5432:shop:me:hunter2").as_deref(), Some("hunter2"));
        assert_eq!(found("*:*:*:*:hunter2").as_deref(), Some("hunter2"));
        assert_eq!(found(r"db:5432:shop:me:a\:b\\c").as_deref(), Some(r"a:b\c"));
        for line in [
            "#*:*:*:*:x",
            "db:5433:shop:me:x",
            "other:*:*:*:x",
            "*:*:*:you:x",
            "db:5432:shop:me",
            "*:*:*:*:",
            r"\*:*:*:*:x",
            "",
        ] {
            assert_eq!(found(line), None, "{line}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_read_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("migrator-passfile-{}", std::process::id()));
        let wanted = Wanted { host: "db", port: 5432, dbname: "shop", user: "me" };
        std::fs::write(&path, "# ours\nother:*:*:*:no\ndb:*:*:me:first\n*:*:*:*:second\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(look_up(&path, wanted), Some(Secret::new("first")));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(look_up(&path, wanted), None);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(look_up(&path, wanted), None);
    }
}

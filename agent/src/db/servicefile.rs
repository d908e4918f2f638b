//! Connection service files: `[name]` and lines `keyword=value`, as libpq reads them.

use super::conninfo::{Bad, Settings, put};
use super::surroundings::Surroundings;
use std::path::{Path, PathBuf};

/// The settings of a service: from the user's file, then from the system's.
pub fn look_up(service: &str, file: Option<&str>, around: &Surroundings) -> Result<Settings, Bad> {
    let user = file.map(PathBuf::from).or_else(|| around.at_home(".pg_service.conf"));
    let system = around.variable("PGSYSCONFDIR").map(|folder| Path::new(folder).join("pg_service.conf"));
    let debian = Some(PathBuf::from("/etc/postgresql-common/pg_service.conf"));
    for path in [user, system, debian].into_iter().flatten() {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file != path.to_str() => continue,
            Err(error) => {
                return Err(Bad::File {
                    what: "service file",
                    path: path.display().to_string(),
                    reason: error.to_string(),
                });
            }
        };
        if let Some(settings) = section(&text, service)? {
            return Ok(settings);
        }
    }
    Err(Bad::NoService(service.to_owned()))
}

fn section(text: &str, service: &str) -> Result<Option<Settings>, Bad> {
    let mut found: Option<Settings> = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if found.is_some() {
                break;
            }
            found = (name == service).then(Settings::new);
        } else if let Some(settings) = &mut found {
            let (name, value) = line.split_once('=').ok_or(Bad::Syntax("a line of a service file is keyword=value"))?;
            if matches!(name, "service" | "servicefile") {
                return Err(Bad::Together("nested service specifications are not supported"));
            }
            // The first of two equal keywords counts.
            if !settings.contains_key(name) {
                put(settings, name, value.to_owned())?;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_holds_its_own_lines_only() {
        let text = "# ours\n[a]\nhost=one\nhost=two\n\n[b]\nhost=three\nport=1\n";
        assert_eq!(section(text, "a").unwrap().unwrap(), Settings::from([("host", "one".to_owned())]));
        assert_eq!(section(text, "b").unwrap().unwrap()["port"], "1");
        assert_eq!(section(text, "c").unwrap(), None);
        assert!(section("[a]\nhoost=x", "a").is_err());
    }
}

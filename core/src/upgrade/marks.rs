//! The names in a row's `applied_upgrades`.

/// Begins what stands among the names of a row on its way from one partition to another.
pub const OUTDATED: &str = "~migrator outdated ";

/// A row's names, in the order in which they were found: no NULL, none twice, whatever dimensions the array had.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks(Vec<String>);

impl Marks {
    /// From the elements of an array; whether that array was as it should be is told too.
    pub fn read<'a>(elements: impl IntoIterator<Item = Option<&'a str>>) -> (Marks, bool) {
        let mut marks = Marks::default();
        let mut clean = true;
        for element in elements {
            match element {
                Some(name) if !marks.has(name) => marks.0.push(name.to_owned()),
                _ => clean = false,
            }
        }
        (marks, clean)
    }

    /// Whether the name is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|mark| mark == name)
    }

    /// Adds a name that is not there.
    pub fn set(&mut self, name: &str) {
        if !self.has(name) {
            self.0.push(name.to_owned());
        }
    }

    /// Takes a name off.
    pub fn clear(&mut self, name: &str) {
        self.0.retain(|mark| mark != name);
    }

    /// Notes that the outputs of an upgrade are those of inputs that the row has not got any more, for whoever stores it next.
    pub fn set_outdated(&mut self, upgrade: i64) {
        self.set(&format!("{OUTDATED}{upgrade}"));
    }

    /// Takes these notes off, and gives the upgrades.
    pub fn take_outdated(&mut self) -> Vec<i64> {
        let noted =
            self.0.iter().filter_map(|mark| mark.strip_prefix(OUTDATED)).filter_map(|id| id.parse().ok()).collect();
        self.0.retain(|mark| !mark.starts_with(OUTDATED));
        noted
    }

    /// The names.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_outdated_outputs_are_no_names() {
        let mut marks = Marks::default();
        marks.set("a");
        marks.set_outdated(5);
        marks.set_outdated(7);
        assert_eq!(marks.take_outdated(), [5, 7]);
        assert_eq!(marks.names(), ["a"]);
        assert_eq!(marks.take_outdated(), Vec::<i64>::new());
    }

    #[test]
    fn what_is_no_name_goes_and_what_is_unknown_stays() {
        let (marks, clean) = Marks::read([Some("a"), None, Some("b"), Some("a")]);
        assert_eq!(marks.names(), ["a", "b"]);
        assert!(!clean);
        let (mut marks, clean) = Marks::read([Some("it's {odd}, \"really\"")]);
        assert!(clean && marks.has("it's {odd}, \"really\""));
        marks.set("x");
        marks.set("x");
        marks.clear("it's {odd}, \"really\"");
        assert_eq!(marks.names(), ["x"]);
    }
}

//! The names in a row's `applied_upgrades`.

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

    /// The names.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

//! Which change of type a key column can take: one that keeps different values different and equal ones equal.

/// A key column's type, as far as the rule needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyType<'a> {
    /// `format_type` of the type under all domains, without its modifier.
    pub base: &'a str,
    /// atttypmod, -1 for none.
    pub modifier: i32,
    /// Oid of the collation, 0 for none.
    pub collation: u32,
    /// Whether the collation is deterministic (true without one).
    pub deterministic: bool,
}

/// What a permitted change of type means for the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Old and new values sort alike.
    pub same_order: bool,
}

/// Whether `new` keeps the equality of `old` one to one for every value, and what that means; None where it may not.
pub fn kept(old: KeyType<'_>, new: KeyType<'_>) -> Option<Kept> {
    if old == new {
        return Some(Kept { same_order: true });
    }
    if !old.deterministic || !new.deterministic {
        return None;
    }
    let same_order = old.collation == new.collation;
    if old.base == new.base {
        return wider(old.base, old.modifier, new.modifier).then_some(Kept { same_order });
    }
    let ordered = match (old.base, new.base) {
        ("smallint", "integer" | "bigint") | ("integer", "bigint") => true,
        ("smallint" | "integer" | "bigint", "numeric") if new.modifier < 0 => true,
        ("character varying", "text") => same_order,
        ("text", "character varying") if new.modifier < 0 => same_order,
        ("smallint" | "integer" | "bigint" | "uuid", "text") => false,
        ("smallint" | "integer" | "bigint" | "uuid", "character varying") if new.modifier < 0 => false,
        _ => return None,
    };
    Some(Kept { same_order: ordered })
}

/// Whether an assignment there, or back, leaves a value what it is or refuses it: nothing is rounded. A text in which there is less room loses blanks at its end without
/// a word: there that counts, and back, where it would stand in the way of more room, it does not.
#[must_use]
pub fn none_rounds(one: KeyType<'_>, other: KeyType<'_>) -> bool {
    // An array has the modifier of its values.
    let [base, new_base] = [one, other].map(|side| side.base.trim_end_matches("[]"));
    let both = |bases: &[&str]| bases.contains(&base) && bases.contains(&new_base);
    let digits = |modifier: i32| (modifier >= 0).then(|| precision_and_scale(modifier).1);
    let narrower = other.modifier >= 0 && (one.modifier < 0 || other.modifier < one.modifier);
    match base {
        _ if one.base.ends_with("[]") != other.base.ends_with("[]") => false,
        _ if one.base != other.base => {
            both(&["smallint", "integer", "bigint"]) || both(&["text", "character varying"]) && !narrower
        }
        "character varying" => !narrower,
        "numeric" => digits(one.modifier) == digits(other.modifier),
        _ if ["time ", "timestamp "].iter().any(|time| base.starts_with(time)) => {
            parts_of_a_second(one) == parts_of_a_second(other)
        }
        // Blanks that fill it are a part of what an expression may see.
        "interval" | "bpchar" | "character" => one.modifier == other.modifier,
        _ => true,
    }
}

/// Whether every value of the type with the old modifier is the same value with the new one.
fn wider(base: &str, old: i32, new: i32) -> bool {
    if old == new || new < 0 {
        return true;
    }
    if old < 0 {
        return false;
    }
    match base {
        "character varying" | "character" | "bit varying" => new > old,
        "numeric" => {
            let (old_precision, old_scale) = precision_and_scale(old);
            let (new_precision, new_scale) = precision_and_scale(new);
            new_scale >= old_scale && new_precision - new_scale >= old_precision - old_scale
        }
        "timestamp without time zone"
        | "timestamp with time zone"
        | "time without time zone"
        | "time with time zone" => new > old,
        _ => false,
    }
}

/// Digits of a time's seconds.
fn parts_of_a_second(time: KeyType<'_>) -> i32 {
    if time.modifier < 0 { 6 } else { time.modifier }
}

/// Of a `numeric`, as numeric.c packs them; a scale is a signed number of 11 bits since 15.
fn precision_and_scale(modifier: i32) -> (i32, i32) {
    let packed = modifier - 4;
    ((packed >> 16) & 0xffff, ((packed & 0x7ff) ^ 1024) - 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(base: &str) -> KeyType<'_> {
        KeyType { base, modifier: -1, collation: 0, deterministic: true }
    }
    fn text(base: &str, modifier: i32, collation: u32) -> KeyType<'_> {
        KeyType { base, modifier, collation, deterministic: true }
    }
    fn numeric(precision: i32, scale: i32) -> KeyType<'static> {
        KeyType {
            base: "numeric",
            modifier: ((precision << 16) | (scale & 0x7ff)) + 4,
            collation: 0,
            deterministic: true,
        }
    }

    #[test]
    fn numbers_may_grow_and_never_shrink() {
        assert_eq!(kept(plain("integer"), plain("bigint")), Some(Kept { same_order: true }));
        assert_eq!(kept(plain("smallint"), plain("numeric")), Some(Kept { same_order: true }));
        assert_eq!(kept(plain("bigint"), plain("integer")), None);
        assert_eq!(kept(plain("numeric"), plain("bigint")), None);
        assert_eq!(kept(plain("integer"), plain("double precision")), None);
    }

    #[test]
    fn a_number_as_text_sorts_otherwise() {
        assert_eq!(kept(plain("integer"), text("text", -1, 100)), Some(Kept { same_order: false }));
        assert_eq!(kept(plain("numeric"), text("text", -1, 100)), None, "1.0 and 1.00 are equal as numbers only");
        assert_eq!(kept(plain("uuid"), text("text", -1, 100)), Some(Kept { same_order: false }));
        assert_eq!(kept(plain("integer"), text("character varying", 7, 100)), None);
    }

    #[test]
    fn text_keeps_its_length_and_its_equality() {
        assert_eq!(kept(text("character varying", 14, 100), text("text", -1, 100)), Some(Kept { same_order: true }));
        assert_eq!(kept(text("text", -1, 100), text("text", -1, 950)), Some(Kept { same_order: false }));
        assert_eq!(kept(text("character varying", 14, 100), text("character varying", 10, 100)), None);
        assert_eq!(
            kept(text("character", 14, 100), text("text", -1, 100)),
            None,
            "padding is not compared as character"
        );
        let insensitive = KeyType { deterministic: false, ..text("text", -1, 777) };
        assert_eq!(kept(insensitive, text("text", -1, 100)), None);
        assert_eq!(kept(insensitive, insensitive), Some(Kept { same_order: true }));
    }

    #[test]
    fn a_numeric_may_gain_digits_on_both_sides() {
        assert!(kept(numeric(10, 2), numeric(12, 2)).is_some());
        assert!(kept(numeric(10, 2), numeric(12, 4)).is_some());
        assert!(kept(numeric(10, 2), numeric(10, 4)).is_none());
        assert!(kept(numeric(10, 2), numeric(12, 1)).is_none());
        assert!(kept(numeric(3, -2), numeric(5, 0)).is_some());
    }

    #[test]
    fn what_rounds_on_one_of_both_ways() {
        let varying = |modifier| text("character varying", modifier, 0);
        for (one, other) in [
            (plain("integer"), plain("bigint")),
            (plain("bigint"), plain("integer")),
            (plain("text"), varying(-1)),
            (varying(9), plain("text")),
            (varying(9), varying(13)),
            (numeric(10, 2), numeric(12, 2)),
            (plain("time with time zone"), text("time with time zone", 6, 0)),
            (text("timestamp without time zone[]", 6, 0), plain("timestamp without time zone[]")),
            (plain("jsonb"), plain("jsonb")),
            (plain("integer[]"), plain("bigint[]")),
            (text("character varying[]", 9, 0), plain("text[]")),
            (plain("timeline.kind"), text("timeline.kind", 3, 0)),
        ] {
            assert!(none_rounds(one, other), "{one:?} {other:?}");
        }
        for (one, other) in [(plain("text"), varying(9)), (varying(13), varying(9))] {
            assert!(!none_rounds(one, other), "{one:?} {other:?}");
        }
        for (one, other) in [
            (plain("integer"), plain("numeric")),
            (plain("numeric"), numeric(10, 2)),
            (numeric(10, 2), numeric(10, 3)),
            (plain("double precision"), plain("real")),
            (plain("timestamp with time zone"), plain("date")),
            (text("timestamp without time zone", 3, 0), plain("timestamp without time zone")),
            (plain("json"), plain("jsonb")),
            (plain("text"), plain("text[]")),
            (text("bpchar", 7, 0), text("bpchar", 9, 0)),
            (text("numeric[]", 655_366, 0), plain("numeric[]")),
        ] {
            assert!(!none_rounds(one, other) && !none_rounds(other, one), "{one:?} {other:?}");
        }
    }
}

//! What is done for one upgrade of one row that is written.
//!
//! An application that does not know of the upgrade writes inputs and leaves outputs alone; one that knows writes outputs,
//! and perhaps the name; an old one may write the whole row, names included, as it read it minutes ago. Told apart by
//! what changed, this is what each of them means.

use super::Upgrade;

/// How a row is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// INSERT: every input is new; an output "changed" where it differs from its column's default.
    New,
    /// UPDATE by anybody, a batch included.
    Updated,
}

/// What the statement did to the upgrade's columns, with the effect of the upgrades before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Whether the row had the name before the statement; false for a new row.
    pub had: bool,
    /// Whether the row has it as written.
    pub has: bool,
    /// Whether an input changed.
    pub inputs: bool,
    /// Whether an output was written.
    pub outputs: bool,
    /// Whether all of them were.
    pub all: bool,
    /// Whether a subscription took an output's value away: it writes all columns that are published, those too that nobody gives a value
    /// there. Such an output does not count as written.
    pub emptied: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The outputs stay as they are and the name is there.
    Keep,
    /// Outputs that the statement did not write itself are made from the inputs, and the name is set.
    DeriveOthers,
    /// All outputs are made from the inputs, and the name is set.
    Derive,
    /// The name goes, and with it those of all later upgrades: it has to be done again, later and by others.
    Leave,
}

/// The act for one upgrade. `in_batch`: the statement is a batch of ours, which may derive what a deferred upgrade derives.
pub fn decide(upgrade: &Upgrade, row: Row, written: Written, in_batch: bool) -> Act {
    if upgrade.is_application() {
        return application(upgrade, row, written);
    }
    if upgrade.in_place {
        let act = in_place(row, written);
        return if upgrade.deferred && !in_batch && act == Act::Derive { Act::Leave } else { act };
    }
    let act = match row {
        // Born with the name by the column's default, and yet written by somebody who does not know of it: what is at its
        // default was not written.
        Row::New => Act::DeriveOthers,
        Row::Updated if is_lost(written) => Act::DeriveOthers,
        // Derived values follow their inputs, whatever the name says.
        Row::Updated if written.had && (written.inputs || !written.has) => Act::Derive,
        Row::Updated if written.has && !written.inputs => Act::Keep,
        // The name is new and so are the inputs: the writer cannot have known what comes of them in the end.
        Row::Updated if written.has => Act::Derive,
        Row::Updated if written.inputs => Act::Derive,
        Row::Updated => Act::DeriveOthers,
    };
    if act == Act::DeriveOthers && written.all {
        // Nothing is left to derive, now or by a batch.
        return Act::Keep;
    }
    if upgrade.deferred && !in_batch && act != Act::Keep { deferred(row, written) } else { act }
}

/// A value is gone under the name, and nothing else was written of which one could tell that it was meant.
fn is_lost(written: Written) -> bool {
    written.had && written.has && !written.inputs && written.emptied
}

/// Nothing is derived in an application's statement. What it wrote knowingly stays.
fn deferred(row: Row, written: Written) -> Act {
    let knows = written.has && written.outputs && (row == Row::New || !written.inputs && !written.emptied);
    if knows { Act::Keep } else { Act::Leave }
}

/// New inputs beside old outputs: whoever wrote them, with the name or without, does not know what comes of them. The name may be
/// one that he read before somebody else changed the inputs. Where no outputs are declared this cannot be seen, and who sets
/// the name is believed.
fn application(upgrade: &Upgrade, row: Row, written: Written) -> Act {
    let tells = written.had || upgrade.outputs().next().is_some();
    let outdated = row == Row::Updated && (written.inputs && !written.outputs && tells || is_lost(written));
    if written.has && !outdated { Act::Keep } else { Act::Leave }
}

/// Whoever writes is new (it was declared so): what is written is in the new shape.
fn in_place(row: Row, written: Written) -> Act {
    if row == Row::New || written.had || written.has || written.outputs { Act::Keep } else { Act::Derive }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::Ident;

    fn upgrade(expression: bool) -> Upgrade {
        Upgrade {
            id: 1,
            name: "u".into(),
            set: if expression { vec![(Ident::new("b"), "l.a".into())] } else { vec![] },
            inputs: vec![Ident::new("a")],
            outputs: vec![],
            settings: 0,
            in_place: false,
            numbers: vec![],
            deferred: false,
        }
    }

    /// By application code, which declares its outputs.
    fn code() -> Upgrade {
        Upgrade { outputs: vec![Ident::new("b")], ..upgrade(false) }
    }

    fn updated(upgrade: &Upgrade, had: bool, has: bool, inputs: bool, outputs: bool) -> Act {
        decide(upgrade, Row::Updated, Written { had, has, inputs, outputs, all: false, emptied: false }, false)
    }

    #[test]
    fn derived_values_follow_their_inputs_whatever_the_name_says() {
        let upgrade = upgrade(true);
        for outputs in [false, true] {
            assert_eq!(updated(&upgrade, true, true, true, outputs), Act::Derive);
            assert_eq!(updated(&upgrade, false, false, true, outputs), Act::Derive);
        }
    }

    #[test]
    fn a_stale_overwrite_of_the_whole_row_is_made_good() {
        assert_eq!(updated(&upgrade(true), true, false, false, true), Act::Derive);
    }

    #[test]
    fn what_a_new_application_writes_is_kept() {
        let upgrade = upgrade(true);
        assert_eq!(updated(&upgrade, true, true, false, true), Act::Keep);
        assert_eq!(updated(&upgrade, false, true, false, true), Act::Keep, "object and name written together");
        assert_eq!(updated(&upgrade, false, false, false, true), Act::DeriveOthers, "the outputs it wrote stay");
        assert_eq!(updated(&upgrade, false, false, false, false), Act::DeriveOthers);
    }

    #[test]
    fn a_new_row_gets_what_nobody_wrote() {
        let upgrade = upgrade(true);
        for has in [false, true] {
            let written = Written { had: false, has, inputs: true, outputs: false, all: false, emptied: false };
            assert_eq!(decide(&upgrade, Row::New, written, false), Act::DeriveOthers);
        }
    }

    #[test]
    fn what_a_subscription_takes_away_is_made_anew() {
        let emptied = |had, has, inputs, outputs| Written { had, has, inputs, outputs, all: false, emptied: true };
        let act = |upgrade: &Upgrade, written| decide(upgrade, Row::Updated, written, false);
        let here = upgrade(true);
        for outputs in [false, true] {
            assert_eq!(act(&here, emptied(true, true, false, outputs)), Act::DeriveOthers, "what it did write stays");
            assert_eq!(act(&here, emptied(true, true, true, outputs)), Act::Derive);
            assert_eq!(act(&here, emptied(true, false, false, outputs)), Act::Derive, "the name is gone as well");
            assert_eq!(act(&here, emptied(false, false, false, outputs)), Act::DeriveOthers);
        }
        assert_eq!(act(&here, emptied(false, true, false, false)), Act::Keep, "it brought the name along");

        let deferred = Upgrade { deferred: true, ..upgrade(true) };
        for outputs in [false, true] {
            assert_eq!(act(&deferred, emptied(true, true, false, outputs)), Act::Leave, "a batch makes it");
        }
        assert_eq!(act(&code(), emptied(true, true, false, false)), Act::Leave, "application code makes it");
        assert_eq!(act(&code(), emptied(true, true, true, true)), Act::Keep, "all of it written together");
    }

    #[test]
    fn application_code_is_waited_for() {
        let upgrade = code();
        assert_eq!(updated(&upgrade, false, false, false, false), Act::Leave);
        assert_eq!(updated(&upgrade, false, true, false, true), Act::Keep);
        assert_eq!(updated(&upgrade, true, true, true, false), Act::Leave, "its inputs changed under it");
        assert_eq!(updated(&upgrade, true, true, true, true), Act::Keep, "both written together");
        assert_eq!(updated(&upgrade, true, false, false, false), Act::Leave);
    }

    #[test]
    fn a_stale_name_beside_new_inputs_counts_for_nothing() {
        assert_eq!(updated(&code(), false, true, true, false), Act::Leave);
        assert_eq!(updated(&code(), false, true, true, true), Act::Keep, "all of it written together");
        assert_eq!(updated(&upgrade(false), false, true, true, false), Act::Keep, "no outputs are declared");
        assert_eq!(updated(&upgrade(false), true, true, true, false), Act::Leave);
        let written = Written { had: false, has: true, inputs: true, outputs: false, all: false, emptied: false };
        assert_eq!(decide(&code(), Row::New, written, false), Act::Keep, "born with the name");
    }

    #[test]
    fn in_place_is_never_done_twice() {
        let upgrade = Upgrade { in_place: true, ..upgrade(true) };
        assert_eq!(updated(&upgrade, true, true, true, true), Act::Keep);
        assert_eq!(
            updated(&upgrade, true, false, false, false),
            Act::Keep,
            "the name was overwritten, the value was not"
        );
        assert_eq!(updated(&upgrade, false, false, false, false), Act::Derive);
        assert_eq!(updated(&upgrade, false, false, true, true), Act::Keep, "a new value is in the new shape");
        let written = Written { had: false, has: false, inputs: true, outputs: true, all: true, emptied: false };
        assert_eq!(decide(&upgrade, Row::New, written, false), Act::Keep);
    }

    #[test]
    fn whoever_writes_all_outputs_is_believed() {
        let written = |inputs| Written { had: false, has: false, inputs, outputs: true, all: true, emptied: false };
        for deferred in [false, true] {
            let upgrade = Upgrade { deferred, ..upgrade(true) };
            assert_eq!(decide(&upgrade, Row::New, written(true), false), Act::Keep);
            assert_eq!(decide(&upgrade, Row::Updated, written(false), false), Act::Keep);
        }
        assert_eq!(
            decide(&upgrade(true), Row::Updated, written(true), false),
            Act::Derive,
            "of inputs that were others"
        );
    }

    #[test]
    fn in_place_is_deferred_like_others() {
        let upgrade = Upgrade { in_place: true, deferred: true, ..upgrade(true) };
        let written = Written { had: false, has: false, inputs: false, outputs: false, all: false, emptied: false };
        assert_eq!(decide(&upgrade, Row::Updated, written, false), Act::Leave);
        assert_eq!(decide(&upgrade, Row::Updated, written, true), Act::Derive);
        assert_eq!(updated(&upgrade, true, false, false, false), Act::Keep);
    }

    #[test]
    fn a_deferred_one_is_left_to_the_batch() {
        let upgrade = Upgrade { deferred: true, ..upgrade(true) };
        assert_eq!(updated(&upgrade, true, true, true, false), Act::Leave);
        assert_eq!(updated(&upgrade, true, true, false, true), Act::Keep);
        let written = Written { had: false, has: false, inputs: false, outputs: false, all: false, emptied: false };
        assert_eq!(decide(&upgrade, Row::Updated, written, false), Act::Leave);
        assert_eq!(decide(&upgrade, Row::Updated, written, true), Act::DeriveOthers);
    }
}

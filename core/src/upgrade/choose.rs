//! Whether an upgrade is brought to a table's rows in batches, or with a new table that is written once and in order.

use crate::load::Unit;

/// Below so many bytes neither way takes long, and batches need nothing beside them.
const SMALL: i64 = 64 << 20;

/// What both ways cost.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// Bytes of table and indexes.
    pub bytes: i64,
    /// Number of indexes.
    pub indexes: i64,
    /// Part of the rows that lacks it.
    pub share: f64,
    /// Bytes that are free where the new table would be; None where that cannot be told.
    pub free: Option<i64>,
}

/// Why batches do it, if the table is small.
pub fn is_small(bytes: i64) -> Option<String> {
    let small = || format!("table and indexes are less than {}, which batches write soon", text(SMALL));
    (bytes < SMALL).then(small)
}

/// The part of the rows from which on a new table costs less. A batch writes each of its rows once more and an entry in every index, where
/// they happen to be; a copy writes all rows in order and builds each index sorted, which costs little beside the rows. With three
/// indexes a copy was measured to write seven times as many rows in a second; half of that gain is left for what the copy needs
/// beside it: disk, catching up and a swap.
fn enough(indexes: i64) -> f64 {
    (1.0 / (1.0 + indexes as f64)).clamp(0.2, 0.5)
}

/// Whether the table is written anew, and why or why not. `seen` says what part of the rows lacks it, in words.
pub fn choose(costs: &Costs, seen: &str) -> Result<String, String> {
    if costs.share < enough(costs.indexes) {
        return Err(format!("{seen}, and batches write only those"));
    }
    // The new table and its indexes, and as much WAL again; and half of what is free stays so.
    let needed = costs.bytes * 2;
    match costs.free {
        None => Err("how much disk is free cannot be told".to_owned()),
        Some(free) if free <= needed * 2 => Err(format!(
            "{seen}, but written anew the table would take more than half of the free disk: {} of {}",
            text(needed),
            text(free)
        )),
        Some(_) => Ok(format!(
            "{seen}, and the disk has room: table and {} index(es) are written once and in order, where batches would write each row and its index entries by themselves",
            costs.indexes
        )),
    }
}

fn text(bytes: i64) -> String {
    Unit::Bytes.text(bytes as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MUCH: Costs = Costs { bytes: 100 << 20, indexes: 1, share: 1.0, free: Some(1 << 40) };

    fn refused(costs: Costs) -> String {
        choose(&costs, "S").expect_err("batches")
    }

    #[test]
    fn small_tables_are_upgraded_in_batches() {
        assert!(is_small(SMALL - 1).is_some());
        assert!(is_small(SMALL).is_none());
    }

    #[test]
    fn the_more_indexes_the_sooner_it_is_written_anew() {
        for (indexes, share) in [(0, 0.5), (1, 0.5), (3, 0.25), (4, 0.2), (20, 0.2)] {
            assert!(choose(&Costs { indexes, share, ..MUCH }, "S").is_ok(), "{indexes}");
            let fewer = Costs { indexes, share: share - 0.01, ..MUCH };
            assert!(refused(fewer).contains("batches write only those"), "{indexes}");
        }
    }

    #[test]
    fn half_of_the_free_disk_stays_free() {
        let needed = MUCH.bytes * 2;
        assert!(choose(&Costs { free: Some(needed * 2 + 1), ..MUCH }, "S").is_ok());
        let full = refused(Costs { free: Some(needed * 2), ..MUCH });
        assert!(full.contains("more than half of the free disk: 200 MB of 400 MB"), "{full}");
        assert!(refused(Costs { free: None, ..MUCH }).contains("cannot be told"));
    }
}

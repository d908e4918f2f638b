//! Publications that reach further than somebody may have thought.

use crate::catalog::{spi, version};
use migrator_core::failure::Failure;
use serde::Deserialize;

/// What is written down of upgrades is in tables, and a publication of all tables has them too. A subscriber that lacks them stops
/// at their first row. Nothing here needs to be published, so somebody who registers an upgrade hears of it.
pub fn warn_of_publications() -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Publications {
        names: Option<String>,
    }
    let found: Publications = spi::fetch_one(&version::complete(PUBLISHING), &[])?;
    if let Some(names) = found.names {
        crate::raise::warn(
            Failure::new("01000", format!("migrator's own tables are published too ({names})"))
                .detail("A subscriber that does not have them stops at the first row that is written to one, which every step does.")
                .hint("List the tables in the publication (for table …) instead of publishing all, or all of schema migrator."),
        );
    }
    Ok(())
}

const PUBLISHING: &str = "\
    select pg_catalog.string_agg(pg_catalog.format('%I', p.pubname), ', ' order by p.pubname) as names from pg_catalog.pg_publication p \
    where p.puballtables or exists (select from @published_schemas@ n where n.pnpubid = p.oid and n.pnnspid = 'migrator'::pg_catalog.regnamespace)";

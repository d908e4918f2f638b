//! Which functions give the same value for the same row in every session and at every time.
//!
//! IMMUTABLE ones do by their author's word. Of PostgreSQL's own STABLE functions those do that depend on
//! nothing but settings which a change records (TimeZone, DateStyle, …). All others are refused.

use crate::catalog::spi;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::Name;
use serde::Deserialize;

#[derive(Deserialize)]
struct Function {
    #[serde(flatten)]
    name: Name,
    volatility: String,
    built_in: bool,
    /// An input or output function of a type: a cast through text.
    converts: bool,
    /// Takes or gives `time with time zone`, whose conversions read today's date.
    of_day: bool,
}

/// STABLE functions of pg_catalog that depend on recorded settings and their arguments only (PostgreSQL 15 to 18).
/// Left out on purpose: age(timestamptz) and now(), which read the clock; everything that reads catalogs,
/// statistics, locks, the session or storage.
const REPEATABLE: &[&str] = &[
    "anytextcat",
    "array_to_json",
    "array_to_string",
    "concat",
    "concat_ws",
    "convert",
    "convert_from",
    "convert_to",
    "date",
    "date_add",
    "date_cmp_timestamptz",
    "date_eq_timestamptz",
    "date_ge_timestamptz",
    "date_gt_timestamptz",
    "date_le_timestamptz",
    "date_lt_timestamptz",
    "date_ne_timestamptz",
    "date_part",
    "date_subtract",
    "date_trunc",
    "enum_first",
    "enum_last",
    "enum_range",
    "extract",
    "format",
    "in_range",
    "interval_pl_timestamptz",
    "json_build_array",
    "json_build_object",
    "json_populate_record",
    "json_to_tsvector",
    "jsonb_build_array",
    "jsonb_build_object",
    "jsonb_path_exists_tz",
    "jsonb_path_match_tz",
    "jsonb_path_query_array_tz",
    "jsonb_path_query_first_tz",
    "jsonb_populate_record",
    "jsonb_to_tsvector",
    "length",
    "make_timestamptz",
    "money",
    "numeric",
    "overlaps",
    "phraseto_tsquery",
    "plainto_tsquery",
    "quote_literal",
    "quote_nullable",
    "row_to_json",
    "textanycat",
    "time",
    "timestamp",
    "timestamp_cmp_timestamptz",
    "timestamp_eq_timestamptz",
    "timestamp_ge_timestamptz",
    "timestamp_gt_timestamptz",
    "timestamp_le_timestamptz",
    "timestamp_lt_timestamptz",
    "timestamp_ne_timestamptz",
    "timestamptz",
    "timestamptz_cmp_date",
    "timestamptz_cmp_timestamp",
    "timestamptz_eq_date",
    "timestamptz_eq_timestamp",
    "timestamptz_ge_date",
    "timestamptz_ge_timestamp",
    "timestamptz_gt_date",
    "timestamptz_gt_timestamp",
    "timestamptz_le_date",
    "timestamptz_le_timestamp",
    "timestamptz_lt_date",
    "timestamptz_lt_timestamp",
    "timestamptz_mi_interval",
    "timestamptz_ne_date",
    "timestamptz_ne_timestamp",
    "timestamptz_pl_interval",
    "timezone",
    "to_char",
    "to_date",
    "to_json",
    "to_jsonb",
    "to_number",
    "to_timestamp",
    "to_tsquery",
    "to_tsvector",
    "ts_headline",
    "ts_match_tq",
    "ts_match_tt",
    "websearch_to_tsquery",
    "xml",
    "xml_is_well_formed",
];

/// Refuses the first of these functions (by oid) that cannot be repeated.
pub fn check(functions: &[u32]) -> Result<(), Failure> {
    if functions.is_empty() {
        return Ok(());
    }
    let oids: Vec<i64> = functions.iter().map(|oid| i64::from(*oid)).collect();
    let unsafe_ones: Vec<Function> = spi::fetch_read_only(
        "select n.nspname as schema, p.proname as name, p.provolatile as volatility, n.nspname = 'pg_catalog' as built_in, \
           (p.prorettype = 'pg_catalog.cstring'::pg_catalog.regtype or coalesce(p.proargtypes[0] = 'pg_catalog.cstring'::pg_catalog.regtype, false)) \
             and p.proname not like 'reg%' as converts, \
           p.prorettype = 'pg_catalog.timetz'::pg_catalog.regtype or 'pg_catalog.timetz'::pg_catalog.regtype = any (p.proargtypes) as of_day \
         from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace \
         where p.oid::pg_catalog.int8 = any ($1) and p.provolatile <> 'i' order by p.provolatile desc, p.proname",
        &[oids.into()],
    )?;
    unsafe_ones.iter().try_for_each(judge)
}

fn judge(function: &Function) -> Result<(), Failure> {
    let name = if function.built_in { function.name.name.as_str().to_owned() } else { function.name.plain() };
    let refused = Failure::new(code::NOT_SUPPORTED, format!("function {name} cannot be used: its value depends on more than the row"))
        .detail("It is evaluated for the same row again, in other sessions and at other times, and has to give the same value each time.");
    if function.volatility == "v" {
        return Err(if function.built_in {
            refused
        } else {
            refused.hint(format!(
                "If {name} depends on nothing but its arguments, declare it so: alter function {name} immutable;"
            ))
        });
    }
    if !function.built_in {
        return Err(refused.hint(format!(
            "A STABLE function may read other rows. If {name} depends on nothing but its arguments, declare it so: alter function {name} immutable;"
        )));
    }
    let repeatable = !function.of_day && (function.converts || REPEATABLE.contains(&function.name.name.as_str()));
    if repeatable { Ok(()) } else { Err(refused) }
}

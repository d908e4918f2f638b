//! Where the supported versions of PostgreSQL have different catalogs.

/// The schemas that publications name. PostgreSQL 14 has no such catalog, as it has no such publications.
const PUBLISHED_SCHEMAS: &str = if cfg!(feature = "pg14") {
    "(select 0::pg_catalog.oid as tableoid, '(0,0)'::pg_catalog.tid as ctid, '0'::pg_catalog.xid as xmin, \
      0::pg_catalog.oid as pnpubid, 0::pg_catalog.oid as pnnspid where false)"
} else {
    "pg_catalog.pg_publication_namespace"
};

/// Completes a query for the version that we are built for: `@published_schemas@` stands for that catalog.
pub fn complete(query: &str) -> String {
    query.replace("@published_schemas@", PUBLISHED_SCHEMAS)
}

//! The image hash: equal for equal bytes, however they are stored, and for nothing else.

#![allow(clippy::unwrap_used)]

#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    #[track_caller]
    fn holds(condition: &str) {
        let found =
            Spi::get_one::<bool>(&format!("select {condition}")).unwrap_or_else(|error| panic!("{condition}: {error}"));
        assert_eq!(found, Some(true), "{condition}");
    }

    #[track_caller]
    fn differ(one: &str, other: &str) {
        holds(&format!("migrator._image_hash({one}) <> migrator._image_hash({other})"));
        holds(&format!("migrator._image_hash({one}) = migrator._image_hash({one})"));
    }

    #[pg_test]
    fn image_hash_tells_apart_what_types_call_equal() {
        differ("1.0", "1.00");
        differ("0::float8", "'-0'::float8");
        differ("'{\"a\":1}'::json", "'{\"a\": 1}'::json");
        differ("'1 day'::interval", "'24 hours'::interval");
        differ("point '(1,2)'", "point '(1,3)'");
        differ("'a'::char(3)", "'a'::char(4)");
        differ("'[2:3]={1,2}'::int[]", "'{1,2}'::int[]");
        differ("1::int4", "2::int4");
        differ("-1::int8", "-2::int8");
    }

    #[pg_test]
    fn image_hash_tells_null_and_position() {
        differ("null::text", "''");
        differ("null::int", "0");
        differ("null, 1", "1, null");
        differ("null", "null, null");
        differ("1, 2", "2, 1");
        differ("'a', 'bc'", "'ab', 'c'");
        differ("'a', null", "null, 'a'");
    }

    #[pg_test]
    fn image_hash_sees_through_storage() {
        Spi::run(
            "create type pair as (a int, b text); \
             create table t (plain text, compressed text, external text, short text, arr int[], n numeric, c pair, j jsonb, r int4range); \
             alter table t alter external set storage external, alter plain set storage plain; \
             insert into t select s, s, s, 'short', a, 12345.678900, row(7, s)::pair, jsonb_build_object('k', s), '[1,9]' \
             from (select repeat('abc', 2000) as s, array_agg(i) as a from generate_series(1, 3000) i) q",
        )
        .unwrap();
        holds("(select pg_column_size(compressed) < 1000 and pg_column_size(external) = 6000 from t)");
        holds("(select migrator._image_hash(plain) = migrator._image_hash(compressed) from t)");
        holds("(select migrator._image_hash(plain) = migrator._image_hash(external) from t)");
        holds("(select migrator._image_hash(plain) = migrator._image_hash(repeat('abc', 2000)) from t)");
        holds("(select migrator._image_hash(short) = migrator._image_hash('short'::text) from t)");
        holds("(select migrator._image_hash(n, r) = migrator._image_hash(12345.678900, int4range(1, 10)) from t)");
        holds("(select migrator._image_hash(j) = migrator._image_hash(jsonb_build_object('k', plain)) from t)");
        holds("(select migrator._image_hash(c) = migrator._image_hash(row(7, plain)::pair) from t)");
        holds(
            "(select migrator._image_hash(row(c.a, c.b)::pair) = migrator._image_hash(row(7, plain)::pair) from (select (c).*, plain from t) c)",
        );
        Spi::run(
            "create function expanded() returns int[] language plpgsql as \
             $$ declare a int[]; begin for i in 1 .. 3000 loop a[i] := i; end loop; return a; end $$",
        )
        .unwrap();
        holds("(select migrator._image_hash(arr) = migrator._image_hash(expanded()) from t)");
    }

    #[pg_test]
    fn image_hash_of_a_row_ignores_its_visibility() {
        Spi::run("create table t (a int, b text); insert into t values (1, 'x'), (2, null); create table u (like t); insert into u table t").unwrap();
        holds("(select count(*) = 2 from t join u using (a) where migrator._image_hash(t) = migrator._image_hash(u))");
        Spi::run("create table w (a int, t t); insert into w select a, t from t; update t set b = b").unwrap();
        holds(
            "(select count(*) = 2 from t join w using (a) where migrator._image_hash(t) = migrator._image_hash(w.t))",
        );
        holds("(select migrator._image_hash(row(1, null)) <> migrator._image_hash(row(1)))");
    }

    #[pg_test]
    fn image_hash_is_for_everybody() {
        Spi::run("create role somebody; set local role somebody").unwrap();
        holds("migrator._image_hash(1, 'a'::text) is not null");
    }

    #[pg_test(error = "migrator._image_hash does not take an array as VARIADIC")]
    fn image_hash_refuses_an_array_of_arguments() {
        Spi::run("select migrator._image_hash(variadic array[1, 2])").unwrap();
    }
}

//! What others need comes first: each signal of the server's load is provoked, slows the copy, or upgrades of rows, down or
//! holds them, is told with its reason, and is over when its cause is. What a worker does then is a part of what it did before.

mod check;
mod limits;
mod pace;
mod part;
mod sessions;
mod shared;
mod standby;
mod upgrades;
mod wal;
mod watched;

use check::{a_check_by_http, a_check_that_may_not_be_told};
use limits::who_may_say_what_is_too_much;
use migrator_tests::*;
use pace::wal_is_written_at_a_rate;
use part::a_slowed_step_does_a_part;
use sessions::{sessions_and_disks_and_a_query_of_one_s_own, the_same_where_rows_are_upgraded};
use shared::one_look_serves_all;
use standby::{queries_on_standbys, standbys, standbys_while_rows_are_upgraded};
use upgrades::{
    a_slowed_batch_of_rows_is_a_part, a_vacuum_that_was_asked_for_slows_nothing,
    who_waits_for_upgrades_does_not_hold_them,
};
use wal::{wal_and_vacuums_while_rows_are_upgraded, wal_that_cannot_go_and_vacuums};

for_each_server!(
    sessions_and_disks_and_a_query_of_one_s_own,
    the_same_where_rows_are_upgraded,
    one_look_serves_all,
    wal_that_cannot_go_and_vacuums,
    wal_and_vacuums_while_rows_are_upgraded,
    standbys,
    standbys_while_rows_are_upgraded,
    queries_on_standbys,
    a_slowed_step_does_a_part,
    a_slowed_batch_of_rows_is_a_part,
    who_waits_for_upgrades_does_not_hold_them,
    a_vacuum_that_was_asked_for_slows_nothing,
    who_may_say_what_is_too_much,
    wal_is_written_at_a_rate,
    a_check_by_http,
    a_check_that_may_not_be_told,
);

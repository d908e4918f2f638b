//! What others need comes first: each signal of the server's load is provoked, slows the copy down or holds it, is told with
//! its reason, and is over when its cause is. What a worker does then is a part of what it did before.

mod limits;
mod part;
mod sessions;
mod standby;
mod wal;
mod watched;

use limits::who_may_say_what_is_too_much;
use migrator_tests::*;
use part::a_slowed_step_does_a_part;
use sessions::sessions_and_disks_and_a_query_of_one_s_own;
use standby::standbys;
use wal::wal_that_cannot_go_and_vacuums;

for_oldest_and_newest_server!(
    sessions_and_disks_and_a_query_of_one_s_own,
    wal_that_cannot_go_and_vacuums,
    standbys,
    a_slowed_step_does_a_part,
    who_may_say_what_is_too_much,
);

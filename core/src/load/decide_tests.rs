use super::*;
use crate::load::{Check, Lag, Lost, Snapshot, Synchronous, Unreadable};

fn work() -> Work {
    Work { tables: vec![7, 8], tablespaces: vec![1663], rewrites: false }
}

/// The verdicts of one look after the other.
fn verdicts(looks: &[Seen], limits: &Limits) -> Vec<Verdict> {
    let mut before = Decision::default();
    looks
        .iter()
        .map(|seen| {
            before = decide(seen, &before, limits);
            before.verdict(&work())
        })
        .collect()
}

/// One letter for each: G(o), S(low by this), H(old).
fn letters(looks: &[Seen]) -> String {
    verdicts(looks, &Limits::default())
        .into_iter()
        .map(|verdict| match verdict {
            Verdict::Go => "G".to_owned(),
            Verdict::Slow(factor, _) => format!("S{factor}"),
            Verdict::Hold(_) => "H".to_owned(),
        })
        .collect()
}

fn one(seen: Seen) -> Verdict {
    verdicts(&[seen], &Limits::default()).remove(0)
}

fn reason(verdict: Verdict) -> String {
    match verdict {
        Verdict::Go => String::new(),
        Verdict::Slow(_, reason) | Verdict::Hold(reason) => reason,
    }
}

fn lag(seconds: f64) -> Seen {
    Seen { replay_lag: Some(vec![Lag { standby: "a/local".into(), seconds }]), ..Seen::default() }
}

#[test]
fn nothing_seen_is_go() {
    assert_eq!(one(Seen::default()), Verdict::Go);
}

#[test]
fn replay_lag_has_two_thresholds() {
    assert_eq!(letters(&[lag(5.0), lag(11.0), lag(5.0), lag(3.0), lag(5.0)]), "GHHGG");
    assert_eq!(reason(one(lag(11.0))), "standby a/local fell more than 10 s behind (goes on below 3 s)");
}

#[test]
fn each_standby_has_a_hysteresis_of_its_own() {
    let two = |a, b| Seen {
        replay_lag: Some(vec![
            Lag { standby: "a/local".into(), seconds: a },
            Lag { standby: "b/local".into(), seconds: b },
        ]),
        ..Seen::default()
    };
    assert_eq!(letters(&[two(11.0, 5.0), two(2.0, 5.0), two(2.0, 11.0), two(5.0, 5.0)]), "HGHH");
    assert_eq!(decide(&two(4.0, 7.0), &Decision::default(), &Limits::default()).values[&Signal::ReplayLag], 7.0);
}

#[test]
fn a_standby_that_is_gone_is_not_one_without_lag() {
    let lost = |seconds| Seen { lost: Some(vec![Lost { standby: "b/local".into(), seconds }]), ..Seen::default() };
    assert_eq!(
        letters(&[lost(0.0), lost(600.0), lost(601.0), lost(3600.0), lost(3601.0), Seen::default()]),
        "HHS4S4GG"
    );
    assert!(reason(one(lost(5.0))).contains("standby b/local"));
}

#[test]
fn a_synchronous_standby_that_is_down_holds() {
    let there = |there| Seen { synchronous: Some(Synchronous { wanted: 2, there }), ..Seen::default() };
    assert_eq!(letters(&[there(2), there(1), there(2), there(3)]), "GHGG");
    assert!(reason(one(there(1))).contains("asks for 2 standby(s), of which 1"));
}

fn slot(active: bool, gib: i64, wal_status: &str) -> Seen {
    let slot = Slot { name: "s".into(), active, bytes: Some(gib << 30), wal_status: Some(wal_status.into()) };
    Seen { slots: Some(vec![slot]), ..Seen::default() }
}

#[test]
fn wal_that_an_idle_slot_keeps_holds_and_that_of_a_late_reader_slows() {
    let idle = |gib| slot(false, gib, "extended");
    assert_eq!(letters(&[idle(8), idle(9), idle(5), idle(4), idle(8)]), "GHHGG");
    let read = |gib| slot(true, gib, "reserved");
    assert_eq!(letters(&[read(8), read(9), read(5), read(4)]), "GS2S2G");
    assert_eq!(letters(&[idle(9), read(9), idle(9)]), "HS2H");
}

#[test]
fn a_slot_that_is_about_to_lose_wal_holds_and_one_that_has_lost_it_slows() {
    assert_eq!(letters(&[slot(true, 0, "unreserved"), slot(false, 0, "reserved")]), "HG");
    let mut lost = slot(false, 0, "lost");
    lost.slots.as_mut().unwrap()[0].bytes = None;
    assert_eq!(letters(&[lost]), "S2");
}

#[test]
fn an_archive_that_falls_behind_holds() {
    let ready = |files| Seen { archive_ready: Some(files), ..Seen::default() };
    assert_eq!(letters(&[ready(32), ready(33), ready(9), ready(8), ready(20)]), "GHHGG");
}

#[test]
fn whoever_waits_for_us_slows_us_at_once() {
    let waiting = |sessions| Seen { waiting: Some(sessions), ..Seen::default() };
    assert_eq!(letters(&[waiting(0), waiting(1), waiting(0)]), "GS4G");
}

#[test]
fn lock_waits_count_beyond_what_is_usual() {
    let waits = |now, usual| Seen { lock_waits: Some(Usual { now, usual }), ..Seen::default() };
    assert_eq!(letters(&[waits(8.0, 0.0), waits(9.0, 0.0), waits(3.0, 0.0), waits(2.0, 0.0)]), "GS4S4G");
    assert_eq!(letters(&[waits(100.0, 95.0)]), "G", "it is always like this here");
}

#[test]
fn active_sessions_count_beyond_what_is_usual_and_in_proportion() {
    let active = |now, usual| Seen { active: Some(Usual { now, usual }), ..Seen::default() };
    assert_eq!(letters(&[active(16.0, 0.0), active(17.0, 0.0), active(9.0, 0.0), active(8.0, 0.0)]), "GS4S4G");
    assert_eq!(letters(&[active(420.0, 400.0)]), "G", "20 more of 400 are nothing");
    assert_eq!(letters(&[active(601.0, 400.0), active(501.0, 400.0), active(500.0, 400.0)]), "S4S4G");
}

fn vacuum(table: u32, wraparound: bool, seconds: f64) -> Seen {
    let vacuum = Vacuum { table, name: "public.t".into(), wraparound, seconds };
    Seen { vacuums: Some(vec![vacuum]), ..Seen::default() }
}

#[test]
fn a_vacuum_against_wraparound_holds_but_not_for_ever() {
    let against = |seconds| vacuum(7, true, seconds);
    assert_eq!(letters(&[against(1.0), against(600.0), against(601.0), Seen::default()]), "HHS4G");
    assert_eq!(letters(&[vacuum(7, false, 1.0), vacuum(7, false, 9999.0)]), "S2S2");
}

#[test]
fn a_vacuum_of_another_table_concerns_nobody_else() {
    assert_eq!(letters(&[vacuum(9, true, 1.0)]), "G");
}

#[test]
fn an_old_snapshot_slows_what_fills_and_holds_what_rewrites() {
    let age = |seconds| Seen {
        snapshot: Some(Snapshot { what: "session 4711 has been in a transaction".into(), seconds }),
        ..Seen::default()
    };
    assert_eq!(letters(&[age(1800.0), age(1801.0), age(901.0), age(900.0)]), "GS2S2G");
    let decision = decide(&age(1801.0), &Decision::default(), &Limits::default());
    let rewriting = Work { rewrites: true, ..work() };
    assert!(matches!(decision.verdict(&rewriting), Verdict::Hold(why) if why.contains("session 4711")));
}

#[test]
fn requested_checkpoints_slow() {
    let requested = |n| Seen { checkpoints: Some(n), ..Seen::default() };
    assert_eq!(letters(&[requested(10), requested(11), requested(6), requested(5)]), "GS2S2G");
}

#[test]
fn a_disk_that_fills_holds_whoever_writes_to_it() {
    let disk = |tablespace, mib: i64| Seen {
        disks: Some(vec![Disk { place: "place".into(), tablespace, free: mib << 20 }]),
        ..Seen::default()
    };
    let wal = |mib| disk(None, mib);
    assert_eq!(letters(&[wal(1024), wal(1023), wal(1500), wal(2048), wal(1500)]), "GHHGG");
    assert_eq!(letters(&[disk(Some(1663), 10)]), "H");
    assert_eq!(letters(&[disk(Some(99), 10)]), "G");
    let two = Seen {
        disks: Some(vec![
            Disk { place: "a".into(), tablespace: None, free: 5 << 30 },
            Disk { place: "b".into(), tablespace: None, free: 4 << 30 },
        ]),
        ..Seen::default()
    };
    let decision = decide(&two, &Decision::default(), &Limits::default());
    assert_eq!(decision.values[&Signal::FreeDisk], 4_294_967_296.0, "the least of them");
}

#[test]
fn the_own_query_holds() {
    let own = |value| Seen { own: Some(value), ..Seen::default() };
    assert_eq!(letters(&[own(0.0), own(0.1), own(0.0)]), "GHG");
    let limits = limits(Signal::OwnQuery, |limit| (limit.enter, limit.leave) = (100.0, 50.0));
    let seen = [own(100.0), own(101.0), own(51.0), own(50.0)];
    let held: Vec<bool> = verdicts(&seen, &limits).iter().map(|verdict| matches!(verdict, Verdict::Hold(_))).collect();
    assert_eq!(held, [false, true, true, false]);
}

fn unreadable(signal: Signal) -> Seen {
    Seen { unreadable: vec![Unreadable { signal, why: "permission denied".into() }], ..Seen::default() }
}

#[test]
fn what_cannot_be_read_slows_and_is_named_and_warned_of_once() {
    for signal in watched() {
        let verdict = one(unreadable(signal));
        assert!(matches!(verdict, Verdict::Slow(2, _)), "{verdict:?}");
        let why = reason(verdict);
        assert!(why.contains(signal.as_str()) && why.contains("permission denied"), "{why}");
    }
    let first = decide(&unreadable(Signal::OwnQuery), &Decision::default(), &Limits::default());
    assert_eq!(first.newly_unreadable(&Decision::default()).count(), 1);
    let second = decide(&unreadable(Signal::OwnQuery), &first, &Limits::default());
    assert_eq!(second.newly_unreadable(&first).count(), 0);
}

#[test]
fn a_signal_that_could_not_be_read_for_a_while_is_over_at_its_second_threshold() {
    let blind = unreadable(Signal::ReplayLag);
    assert_eq!(letters(&[lag(11.0), blind.clone(), blind.clone(), lag(5.0), lag(3.0), lag(5.0)]), "HS2S2HGG");
    assert_eq!(letters(&[lag(5.0), blind, lag(5.0)]), "GS2G");
}

#[test]
fn an_old_snapshot_that_cannot_be_seen_holds_nobody() {
    let decision = decide(&unreadable(Signal::SnapshotAge), &Decision::default(), &Limits::default());
    assert!(matches!(decision.verdict(&Work { rewrites: true, ..work() }), Verdict::Slow(2, _)));
}

fn limits(signal: Signal, change: impl Fn(&mut Limit)) -> Limits {
    let mut limit = signal.default_limit();
    change(&mut limit);
    Limits(BTreeMap::from([(signal, limit)]))
}

/// Something of everything, bad enough for each signal.
fn everything() -> Seen {
    let mut all = lag(1e6);
    all.lost = Some(vec![Lost { standby: "gone/10.0.0.1".into(), seconds: 1.0 }]);
    all.synchronous = Some(Synchronous { wanted: 1, there: 0 });
    all.slots = slot(false, 1000, "unreserved").slots;
    all.archive_ready = Some(1000);
    all.waiting = Some(1000);
    all.lock_waits = Some(Usual { now: 1e6, usual: 0.0 });
    all.active = Some(Usual { now: 1e6, usual: 0.0 });
    all.vacuums = vacuum(7, true, 1.0).vacuums;
    all.snapshot = Some(Snapshot { what: "session 4711 has been in a transaction".into(), seconds: 1e6 });
    all.checkpoints = Some(1000);
    all.disks = Some(vec![Disk { place: "WAL".into(), tablespace: None, free: 0 }]);
    all.own = Some(1e6);
    all.checks = Some(vec![Check { address: "https://status.example/ready".into(), said: "503".into() }]);
    all
}

/// All but what is kept by the batches themselves.
fn watched() -> impl Iterator<Item = Signal> {
    Signal::ALL.into_iter().filter(|signal| *signal != Signal::WalRate)
}

#[test]
fn a_check_holds_until_all_is_well() {
    let said = |said: &str| Seen {
        checks: Some(vec![Check { address: "https://status.example/ready".into(), said: said.into() }]),
        ..Seen::default()
    };
    assert_eq!(letters(&[Seen::default(), said("503"), said("404"), Seen::default()]), "GHHG");
    assert_eq!(reason(one(said("503"))), "the check https://status.example/ready says no: 503");
}

#[test]
fn every_signal_can_be_switched_off() {
    for signal in watched() {
        let on = |limits: &Limits| {
            let mut seen = everything();
            seen.unreadable = unreadable(signal).unreadable;
            decide(&seen, &Decision::default(), limits).raised.iter().any(|raised| raised.signal == signal)
        };
        assert!(on(&Limits::default()), "{signal:?} is not raised by anything");
        assert!(!on(&limits(signal, |limit| limit.off = true)), "{signal:?} cannot be switched off");
    }
}

#[test]
fn standbys_slots_and_places_can_be_left_out_by_name() {
    for (signal, name) in [
        (Signal::ReplayLag, "a/local"),
        (Signal::ReplayLag, "a"),
        (Signal::LostStandby, "gone"),
        (Signal::SlotWal, "s"),
        (Signal::Vacuum, "public.t"),
        (Signal::FreeDisk, "WAL"),
    ] {
        let raised = |name: &str| {
            let limits = limits(signal, |limit| limit.ignoring = vec![name.to_owned()]);
            decide(&everything(), &Decision::default(), &limits).raised.iter().any(|raised| raised.signal == signal)
        };
        assert!(raised("another"), "{signal:?}");
        assert!(!raised(name), "{signal:?} {name}");
    }
}

#[test]
fn a_hold_outweighs_and_all_its_reasons_are_told() {
    let mut seen = lag(11.0);
    seen.waiting = Some(1);
    seen.archive_ready = Some(99);
    let Verdict::Hold(why) = one(seen.clone()) else { panic!("not held") };
    assert!(why.contains("standby a/local") && why.contains("; ") && why.contains("archived"), "{why}");
    assert!(!why.contains("lock of ours"), "that alone would not hold: {why}");
    seen.replay_lag = None;
    seen.archive_ready = None;
    seen.checkpoints = Some(99);
    let Verdict::Slow(4, why) = one(seen) else { panic!("not slowed to the slowest") };
    assert!(why.contains("lock of ours") && why.contains("checkpoints"), "{why}");
}

#[test]
fn since_is_when_it_began_and_the_words_stay_the_same() {
    let mut before = Decision::default();
    for (at, seconds) in [(100.0, 11.0), (101.0, 50.0), (102.0, 4.0)] {
        let now = decide(&Seen { at, ..lag(seconds) }, &before, &Limits::default());
        assert_eq!(now.raised[0].since, 100.0);
        assert!(before.raised.is_empty() || now.raised[0].reason == before.raised[0].reason);
        before = now;
    }
}

#[test]
fn a_decision_survives_being_stored() {
    let mut seen = everything();
    seen.unreadable = unreadable(Signal::OwnQuery).unreadable;
    let decision = decide(&seen, &Decision::default(), &Limits::default());
    let stored = serde_json::to_value(&decision).unwrap();
    assert_eq!(serde_json::from_value::<Decision>(stored).unwrap(), decision);
}

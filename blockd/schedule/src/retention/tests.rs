use super::*;
use proptest::prelude::*;

const NOW_S: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW_S).unwrap()
}

fn made(id: u32, hours_ago: i64) -> Snapshot<u32> {
    Snapshot {
        id,
        created: Timestamp::from_second(NOW_S - hours_ago * 3_600).unwrap(),
        condition: Condition::Done,
        health: Health::Unverified,
        pinned: false,
        held: false,
        expires: None,
    }
}

fn deleted(snapshots: &[Snapshot<u32>], retention: &Retention) -> Vec<u32> {
    let verdicts = decide(snapshots, retention, now());
    verdicts.into_iter().filter(|(_, verdict)| verdict.is_delete()).map(|(id, _)| id).collect()
}

#[test]
fn max_keeps_the_newest() {
    let snapshots: Vec<_> = (0..5).map(|id| made(id, i64::from(id) * 24)).collect();
    assert_eq!(deleted(&snapshots, &Retention::max(2).unwrap()), [2, 3, 4]);
    assert_eq!(deleted(&snapshots, &Retention::default()), [0_u32; 0]);
    assert_eq!(Retention::max(0), Err(RetentionError::KeepsNothing));
}

#[test]
fn damaged_newest_snapshot_stops_deletion() {
    let mut snapshots: Vec<_> = (0..5).map(|id| made(id, i64::from(id))).collect();
    snapshots[0].health = Health::Bad;
    assert_eq!(deleted(&snapshots, &Retention::max(2).unwrap()), [0_u32; 0]);
    snapshots[0].health = Health::Unverified;
    snapshots[1].health = Health::Bad;
    assert_eq!(deleted(&snapshots, &Retention::max(2).unwrap()), [3, 4]);
    snapshots[0].health = Health::Verified;
    assert_eq!(deleted(&snapshots, &Retention::max(2).unwrap()), [1, 3, 4]);
}

/// A shared bad frame damages all of them; the next, unverified one is good.
#[test]
fn damaged_history_outlives_first_good_snapshot() {
    let mut snapshots: Vec<_> = (0..5).map(|id| made(id, i64::from(id) * 24)).collect();
    for snapshot in &mut snapshots[1..] {
        snapshot.health = Health::Bad;
    }
    let daily = Retention { keep_daily: 3, ..Retention::default() };
    assert_eq!(deleted(&snapshots, &Retention::default()), [0_u32; 0]);
    assert_eq!(deleted(&snapshots, &daily), [0_u32; 0]);
    // Newer good ones let them expire.
    for snapshot in &mut snapshots[..3] {
        snapshot.health = Health::Unverified;
    }
    assert_eq!(deleted(&snapshots, &daily), [3, 4]);
    snapshots[0].health = Health::Verified;
    assert_eq!(deleted(&snapshots, &Retention::default()), [0_u32; 0]);
}

#[test]
fn snapshot_in_doubt_takes_no_place_and_ages_as_a_good_one() {
    let mut snapshots: Vec<_> = (0..4).map(|id| made(id, i64::from(id))).collect();
    snapshots[0].condition = Condition::InDoubt;
    assert_eq!(deleted(&snapshots, &Retention::max(1).unwrap()), [2, 3]);
    snapshots[0].expires = Some(now());
    snapshots[1].expires = Some(now());
    assert_eq!(deleted(&snapshots, &Retention::default()), [0_u32; 0]);
    // Behind a good one it is deleted when that one would be.
    let mut snapshots: Vec<_> = (0..4).map(|id| made(id, i64::from(id))).collect();
    snapshots[1].condition = Condition::InDoubt;
    assert_eq!(deleted(&snapshots, &Retention::max(2).unwrap()), [3]);
    assert_eq!(deleted(&snapshots, &Retention::max(1).unwrap()), [1, 2, 3]);
}

#[test]
fn damage_of_the_newest_counts_while_it_is_in_use() {
    let mut snapshots: Vec<_> = (0..3).map(|id| made(id, i64::from(id))).collect();
    snapshots[0].health = Health::Bad;
    for condition in [Condition::InUse, Condition::InDoubt] {
        snapshots[0].condition = condition;
        assert_eq!(deleted(&snapshots, &Retention::max(1).unwrap()), [0_u32; 0]);
    }
}

#[test]
fn last_verified_snapshot_is_kept_beside_unverified_ones() {
    let mut snapshots: Vec<_> = (0..5).map(|id| made(id, i64::from(id))).collect();
    snapshots[3].health = Health::Verified;
    snapshots[4].health = Health::Verified;
    assert_eq!(deleted(&snapshots, &Retention::max(1).unwrap()), [1, 2, 4]);
}

#[test]
fn verification_by_another_host_protects_and_deletes_nothing() {
    let mut snapshots: Vec<_> = (0..5).map(|id| made(id, i64::from(id))).collect();
    snapshots[1].health = Health::VerifiedElsewhere;
    snapshots[3].health = Health::Verified;
    assert_eq!(deleted(&snapshots, &Retention::max(1).unwrap()), [2, 4], "its own proof stays as well");
    snapshots[0].health = Health::Verified;
    assert_eq!(deleted(&snapshots, &Retention::max(1).unwrap()), [1, 2, 3, 4]);
    snapshots[0].health = Health::VerifiedElsewhere;
    snapshots[1].health = Health::Bad;
    assert_eq!(deleted(&snapshots, &Retention::max(2).unwrap()), [4], "damage goes by own proofs only");
}

#[test]
fn doubt_takes_no_protection_from_the_last_verified_snapshot() {
    let mut snapshots: Vec<_> = (0..4).map(|id| made(id, i64::from(id))).collect();
    snapshots[1].health = Health::Verified;
    snapshots[1].condition = Condition::InDoubt;
    snapshots[3].health = Health::Verified;
    assert_eq!(deleted(&snapshots, &Retention::max(1).unwrap()), [2]);
}

#[test]
fn snapshot_in_use_or_from_the_future_is_not_the_last_verified() {
    let [in_use, future, past] = [1, -48, 2].map(|hours_ago| made(0, hours_ago));
    for (snapshot, is_last_verified) in
        [(Snapshot { condition: Condition::InUse, ..in_use }, false), (future, false), (past, true)]
    {
        let verdicts =
            decide(&[Snapshot { health: Health::Verified, ..snapshot }], &Retention::default(), now());
        let [(_, Verdict::Keep(reasons))] = &verdicts[..] else { panic!("{verdicts:?}") };
        assert_eq!(reasons.contains(&KeepReason::LastVerified), is_last_verified, "{reasons:?}");
    }
}

#[test]
fn dates_and_pins() {
    let mut snapshots: Vec<_> = (0..4).map(|id| made(id, i64::from(id))).collect();
    snapshots[1].expires = Some(now());
    snapshots[2].expires = Timestamp::from_second(NOW_S + 1).ok();
    snapshots[3].pinned = true;
    let held: Vec<_> = snapshots.iter().map(|one| Snapshot { held: true, ..*one }).collect();
    assert_eq!(deleted(&held, &Retention::max(1).unwrap()), [0; 0]);
    let verdicts = decide(&snapshots, &Retention::default(), now());
    assert_eq!(verdicts[1].1, Verdict::Delete(DeleteReason::Expired));
    assert_eq!(deleted(&snapshots, &Retention::max(1).unwrap()), [1]);
    // The last good one stays beyond its expiry date.
    let alone = Snapshot { expires: Some(now()), ..made(9, 1) };
    assert_eq!(
        decide(&[alone], &Retention::default(), now())[0].1,
        Verdict::Keep(vec![KeepReason::LastGood])
    );
}

#[test]
fn future_snapshot_does_not_displace_others() {
    let snapshots = [made(0, -48), made(1, 1), made(2, 2)];
    let verdicts = decide(&snapshots, &Retention::max(1).unwrap(), now());
    assert_eq!(verdicts[0].1, Verdict::Keep(vec![KeepReason::FromTheFuture]));
    assert_eq!(verdicts[1].1, Verdict::Keep(vec![KeepReason::LastGood, KeepReason::Last(1)]));
    assert!(verdicts[2].1.is_delete());
}

#[test]
fn buckets_are_of_local_time_and_each_keeps_its_newest() {
    // 2027-01-15 08:00 UTC; a snapshot every six hours for two years.
    let snapshots: Vec<_> = (0..2_920).map(|id| made(id, i64::from(id) * 6)).collect();
    let retention =
        Retention { keep_daily: 7, keep_weekly: 4, keep_monthly: 12, keep_yearly: 3, ..Retention::default() };
    let verdicts = decide(&snapshots, &retention, now());
    let count = |wanted: fn(&KeepReason) -> bool| {
        let kept = verdicts.iter().filter_map(|(_, verdict)| match verdict {
            Verdict::Keep(reasons) => Some(reasons),
            Verdict::Delete(_) => None,
        });
        kept.flatten().filter(|reason| wanted(reason)).count()
    };
    assert_eq!(count(|reason| matches!(reason, KeepReason::Daily(_))), 7);
    assert_eq!(count(|reason| matches!(reason, KeepReason::Weekly(_))), 4);
    assert_eq!(count(|reason| matches!(reason, KeepReason::Monthly(_))), 12);
    assert_eq!(count(|reason| matches!(reason, KeepReason::Yearly(_))), 3);
    // 23:30 UTC is the next day in Berlin.
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let two = [
        Snapshot { created: at("2026-06-01T21:30:00Z"), ..made(0, 0) },
        Snapshot { created: at("2026-06-01T22:30:00Z"), ..made(1, 0) },
    ];
    let daily = Retention { keep_daily: 9, ..Retention::default() };
    assert_eq!(deleted(&two, &daily), [0]);
    let berlin = Retention { zone: "Europe/Berlin".parse().unwrap(), ..daily };
    assert_eq!(deleted(&two, &berlin), [0_u32; 0]);
}

#[test]
fn text_and_json() {
    let retention = Retention { keep_last: 3, keep_yearly: 1, ..Retention::default() };
    assert_eq!(retention.to_string(), "last=3,yearly=1");
    let json = serde_json::to_string(&retention).unwrap();
    assert_eq!(json, r#"{"keepLast":3,"keepYearly":1}"#);
    assert_eq!(serde_json::from_str::<Retention>(&json).unwrap(), retention);
    assert!(serde_json::from_str::<Retention>(r#"{"keepLsat":3}"#).is_err());
    let verdict = Verdict::Keep(vec![KeepReason::LastGood, KeepReason::Daily(2)]);
    assert_eq!(verdict.to_string(), "keep: the last good one, daily 2");
    let json = serde_json::to_string(&verdict).unwrap();
    assert_eq!(json, r#"{"keep":[{"kind":"last-good"},{"kind":"daily","number":2}]}"#);
    assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict);
}

fn snapshots() -> impl Strategy<Value = Vec<Snapshot<u32>>> {
    let health =
        prop_oneof![4 => Just(Health::Unverified), 2 => Just(Health::Verified), 2 => Just(Health::Bad)];
    let one = (
        -3_i64..6_000,
        health,
        prop::bool::weighted(0.1),
        prop_oneof![8 => Just(Condition::Done), 1 => Just(Condition::InUse), 1 => Just(Condition::InDoubt)],
        prop::option::weighted(0.2, -100_i64..100),
    );
    prop::collection::vec(one, 0..40).prop_map(|all| {
        let mut id = 0;
        let made = all.into_iter().map(|(hours_ago, health, pinned, condition, expires)| {
            id += 1;
            Snapshot {
                health,
                pinned,
                condition,
                expires: expires.map(|hours| Timestamp::from_second(NOW_S + hours * 3_600).unwrap()),
                ..made(id, hours_ago)
            }
        });
        made.collect()
    })
}

fn retentions() -> impl Strategy<Value = Retention> {
    (0_u32..4, 0_u32..4, 0_u32..4, 0_u32..4, 0_u32..4, 0_u32..4).prop_map(|(l, h, d, w, m, y)| Retention {
        keep_last: l,
        keep_hourly: h,
        keep_daily: d,
        keep_weekly: w,
        keep_monthly: m,
        keep_yearly: y,
        zone: Zone::utc(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn protected_snapshots_are_never_deleted(snapshots in snapshots(), retention in retentions()) {
        let verdicts = decide(&snapshots, &retention, now());
        prop_assert_eq!(verdicts.len(), snapshots.len());
        let of = |id: u32| snapshots.iter().find(|snapshot| snapshot.id == id).unwrap();
        let past = |s: &&Snapshot<u32>| s.condition == Condition::Done && s.created.as_second() <= NOW_S + 3_600;
        let newer = |a: &Snapshot<u32>, b: &Snapshot<u32>| (a.created, a.id) > (b.created, b.id);
        let newest = snapshots.iter().filter(past).max_by_key(|s| (s.created, s.id));
        for (id, verdict) in &verdicts {
            let snapshot = of(*id);
            match verdict {
                Verdict::Keep(reasons) => prop_assert!(!reasons.is_empty()),
                Verdict::Delete(_) => {
                    prop_assert!(!snapshot.pinned);
                    prop_assert!(snapshot.condition != Condition::InUse);
                    prop_assert!(snapshot.expires.is_none_or(|at| at <= now()));
                    // A newer good one stays, and the newest is not known to be bad.
                    let better = verdicts.iter().any(|(other, verdict)| {
                        let other = of(*other);
                        !verdict.is_delete() && past(&other) && other.health != Health::Bad && newer(other, snapshot)
                    });
                    prop_assert!(better);
                    prop_assert!(newest.is_some_and(|newest| newest.health != Health::Bad));
                    if snapshot.health == Health::Verified && snapshot.condition == Condition::Done {
                        let newer_one = snapshots.iter().any(|other| {
                            past(&other) && other.health == Health::Verified && newer(other, snapshot)
                        });
                        prop_assert!(newer_one);
                    }
                    prop_assert!(!retention.keeps_all() || snapshot.expires.is_some());
                }
            }
        }
        // As many good ones stay as requested.
        let counted = |s: &&Snapshot<u32>| past(s) && s.health != Health::Bad && s.expires.is_none_or(|at| at > now());
        let kept = verdicts.iter().filter(|(id, v)| !v.is_delete() && counted(&of(*id))).count();
        let good = snapshots.iter().filter(counted).count();
        prop_assert!(kept >= good.min(retention.keep_last as usize));
        // After the deletions, nothing more is deleted.
        let left: Vec<_> = verdicts.iter().filter(|(_, v)| !v.is_delete()).map(|(id, _)| of(*id).clone()).collect();
        prop_assert!(decide(&left, &retention, now()).iter().all(|(_, verdict)| !verdict.is_delete()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Proofs of other hosts are no reason for a deletion.
    #[test]
    fn results_of_other_hosts_delete_nothing(
        own in snapshots(), retention in retentions(), others in prop::collection::vec(0..4_u8, 40),
    ) {
        let mut known = own.clone();
        for (snapshot, other) in known.iter_mut().zip(others) {
            match (other, snapshot.health) {
                (0, Health::Unverified) => snapshot.health = Health::VerifiedElsewhere,
                (1, Health::Unverified | Health::Verified) if snapshot.condition == Condition::Done => {
                    snapshot.condition = Condition::InDoubt;
                }
                _ => {}
            }
        }
        let without = deleted(&own, &retention);
        for id in deleted(&known, &retention) {
            prop_assert!(without.contains(&id), "{}", id);
        }
    }
}

#[test]
fn retention_text_parses_back() {
    for text in ["all", "last=14", "last=24,hourly=2,daily=3,weekly=4,monthly=5,yearly=6", "monthly=12"] {
        assert_eq!(text.parse::<Retention>().unwrap().to_string(), text);
    }
    assert_eq!("14".parse::<Retention>(), Retention::max(14));
    for text in ["", "0", "last", "last=0", "last=x", "last=1,last=2", "never=1", "last=1,", "-1"] {
        assert!(text.parse::<Retention>().is_err(), "{text:?} was taken");
    }
}

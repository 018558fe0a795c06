//! The governor against models of guests and disks.

use super::*;
use crate::metrics::fine_bucket;

const LOOK: Duration = Duration::from_millis(50);

fn seen(requests: u64, micros_each: u64, slow: u64) -> Seen {
    Seen { data: took(requests, micros_each, slow), during: LOOK, ..Seen::default() }
}

/// Some of them are slow, the others take as long as all do on average.
fn took(count: u64, micros_each: u64, slow: u64) -> Requests {
    let mut took = Took::default();
    let slow = slow.min(count);
    took[fine_bucket(micros_each * 1000)] += count - slow;
    took[fine_bucket(micros_each.max(5_000) * 1000)] += slow;
    Requests { count, nanos: count * micros_each * 1000, took, ..Requests::default() }
}

#[test]
fn without_requests_tasks_have_all_of_the_time() {
    let mut governor = Governor::default();
    for _ in 0..100 {
        assert_eq!(governor.look(&seen(0, 0, 0)), ALL_PERMILLE);
    }
    // A few now and then are no guest at work.
    for _ in 0..100 {
        assert_eq!(governor.look(&seen(1, 500, 0)), ALL_PERMILLE);
    }
}

#[test]
fn guests_that_do_not_suffer_leave_all_of_it_in_the_end() {
    let mut governor = Governor::default();
    let first = governor.look(&seen(100, 20, 0));
    assert_eq!(first, LEAST_PERMILLE, "first of all it is looked what is usual");
    let mut last = first;
    for _ in 0..50 {
        let share = governor.look(&seen(100, 20, 0));
        assert!(share >= last);
        last = share;
    }
    assert_eq!(last, ALL_PERMILLE);
}

#[test]
fn requests_that_take_longer_take_the_share_down_and_it_comes_back() {
    // All of them, and two of a hundred, which the mean does not show.
    for (bad, spared) in [(seen(100, 200, 0), 0), (seen(100, 20, 2), 5)] {
        let mut governor = Governor::default();
        (0..50).for_each(|_| {
            governor.look(&seen(100, 20, 0));
        });
        // A few late ones were saved up for.
        (0..spared).for_each(|_| assert_eq!(governor.look(&bad), ALL_PERMILLE));
        assert_eq!(governor.look(&bad), ALL_PERMILLE / 2);
        assert_eq!(governor.look(&bad), ALL_PERMILLE / 4);
        (0..10).for_each(|_| {
            governor.look(&bad);
        });
        assert_eq!(governor.look(&bad), LEAST_PERMILLE, "it does not come to rest altogether");
        let shares: Vec<u32> = (0..60).map(|_| governor.look(&seen(100, 20, 0))).collect();
        assert!(shares.is_sorted() && shares.last() == Some(&ALL_PERMILLE), "{shares:?}");
    }
}

/// Against a model of a guest with 2,000 requests a second: one of a thousand is late at rest, and beside tasks as many more as
/// they work: of a hundred up to eight. The mean hardly shows it.
#[test]
fn no_more_than_one_of_a_hundred_is_late_beside_tasks() {
    let mut governor = Governor::default();
    let (mut number, mut share) = (1u64, FIRST_PERMILLE);
    let (mut late, mut worked, mut looks) = (0, 0, 0);
    for look in 0..24_000 {
        let late_now = (0..100)
            .filter(|_| {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (number >> 33) % 100_000 < 100 + u64::from(share) * 8
            })
            .count() as u64;
        let mut requests = took(100, 60, 0);
        requests.took[fine_bucket(60_000)] -= late_now;
        requests.took[fine_bucket(600_000)] += late_now;
        requests.nanos += late_now * 540_000;
        share = governor.look(&Seen { data: requests, ..seen(0, 0, 0) });
        if look >= 4_000 {
            (late, worked, looks) = (late + late_now, worked + u64::from(share), looks + 1);
        }
    }
    // The mean of the share would be 112 if one of a hundred were late all the time.
    assert!(late * 100 <= looks * 100 * 115 / 100, "{late} late ones in {looks} looks");
    assert!((60..160).contains(&(worked / looks)), "{}", worked / looks);
}

/// A guest that works for a second of each five: never long enough for what tasks did before to be out of the way. What it does
/// takes long whatever tasks do, and they worked before it began.
#[test]
fn bursts_that_are_short_are_learned_in_the_end() {
    let mut governor = Governor::default();
    let mut share = 0;
    let mut in_bursts = Vec::new();
    for look in 0..6_000 {
        let is_burst = look % 100 < 20 && look > 100;
        share = governor.look(&if is_burst { seen(100, 3_000, 4) } else { seen(0, 0, 0) });
        if is_burst && look >= 3_000 {
            in_bursts.push(u64::from(share));
        }
    }
    assert_eq!(share, ALL_PERMILLE, "between bursts all of the time is the tasks'");
    let mean = in_bursts.iter().sum::<u64>() / in_bursts.len() as u64;
    assert!(mean > 2 * u64::from(LEAST_PERMILLE), "{mean}: nobody learned what is usual: {in_bursts:?}");
}

/// What such bursts suffer from tasks is not taken for what they are.
#[test]
fn bursts_that_suffer_are_not_learned_as_they_suffer() {
    let mut governor = Governor::default();
    // As long as a disk writes out what tasks gave it before.
    let (mut share, mut pressed_until, mut late, mut bursts) = (ALL_PERMILLE, 0, 0, 0);
    for look in 0..6_000 {
        if share > 300 {
            pressed_until = look + 30;
        }
        let is_burst = look % 100 < 20 && look > 100;
        let suffers = look < pressed_until;
        if is_burst && look >= 3_000 {
            (bursts, late) = (bursts + 1, late + u64::from(suffers && share > 300));
        }
        let burst = seen(100, if suffers { 200 } else { 40 }, 0);
        share = governor.look(&if is_burst { burst } else { seen(0, 0, 0) });
    }
    assert!(late * 4 < bursts, "{late} of {bursts}: tasks go on while guests suffer");
}

#[test]
fn other_work_of_the_guest_becomes_usual() {
    let mut governor = Governor::default();
    (0..50).for_each(|_| {
        governor.look(&seen(100, 20, 0));
    });
    // It writes megabytes now, which take as long whatever the tasks do.
    let shares: Vec<u32> = (0..600).map(|_| governor.look(&seen(100, 2_000, 3))).collect();
    assert_eq!(shares.iter().min(), Some(&LEAST_PERMILLE));
    assert_eq!(shares.last(), Some(&ALL_PERMILLE));
}

/// Against a model: from three tenths of the time on, requests take four times as long, also for a while after tasks have
/// held back, as long as a disk writes out what it was given.
#[test]
fn what_tasks_do_to_guests_does_not_become_usual() {
    for lag in [0, 20, 35] {
        let mut governor = Governor::default();
        let (mut share, mut pressed_until, mut late, mut shares) = (FIRST_PERMILLE, 0, 0, Vec::new());
        // Ten minutes.
        for look in 0..12_000 {
            if share > 300 {
                pressed_until = look + 1 + lag;
            }
            let suffers = look < pressed_until;
            late += u64::from(suffers && look >= 6_000);
            share = governor.look(&seen(100, if suffers { 80 } else { 20 }, 0));
            shares.push(share);
        }
        let last = &shares[6_000..];
        assert!(last.iter().all(|share| *share <= 300 + STEP_PERMILLE), "{lag}: {:?}", last.iter().max());
        assert!(last.iter().any(|share| *share > 200), "{lag}: it tries again");
        assert!(late < 6_000 * (2 + lag) / (14 + lag), "{lag}: {late} of 6000");
    }
}

#[test]
fn noise_does_not_take_the_share_away() {
    let mut governor = Governor::default();
    let mut number = 1u64;
    let mut shares = Vec::new();
    for _ in 0..2_000 {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // 80 to 120 µs, and now and then a slow one.
        shares.push(u64::from(governor.look(&seen(
            100,
            80 + (number >> 33) % 40,
            u64::from((number >> 40).is_multiple_of(64)),
        ))));
    }
    let settled = shares[200..].iter().sum::<u64>() / shares[200..].len() as u64;
    assert!(settled > 700, "{settled}");
}

/// A guest keeps 32 requests under way, and none of them comes back, or only one now and then.
#[test]
fn requests_under_way_that_should_be_done_take_the_share_down_at_once() {
    for comes_back in [0, 1] {
        let mut governor = Governor::default();
        (0..50).for_each(|_| {
            governor.look(&Seen {
                data: Requests { waiting: 32, waiting_nanos: 32 * 10_000, ..took(100, 20, 0) },
                ..seen(0, 0, 0)
            });
        });
        let shares: Vec<u32> = (0..10)
            .map(|look| {
                let waiting_nanos = 31 * look * LOOK.as_nanos() as u64;
                let done = took(comes_back, 40_000 * look, comes_back);
                governor.look(&Seen {
                    data: Requests { waiting: 31, waiting_nanos, ..done },
                    during: LOOK,
                    ..Seen::default()
                })
            })
            .collect();
        assert_eq!(shares[..5], [1000, 1000, 1000, 500, 250], "{shares:?}");
        assert!(shares[9] <= 2 * LEAST_PERMILLE && governor.sees_guests(), "{shares:?}");
    }
    // Those of a guest whose requests take as long whatever tasks do are not late.
    let mut governor = Governor::default();
    let slow = Requests { waiting: 32, waiting_nanos: 32 * 60_000_000, ..took(27, 60_000, 27) };
    let shares: Vec<u32> =
        (0..300).map(|_| governor.look(&Seen { data: slow, during: LOOK, ..Seen::default() })).collect();
    assert_eq!(shares.last(), Some(&ALL_PERMILLE), "{shares:?}");
    // Nor are few that are long beside many that are short, as a look finds them: their mean age has nothing to do with the mean time.
    let mut governor = Governor::default();
    let long = Requests { waiting: 2, waiting_nanos: 2 * 90_000_000, ..took(200, 1_000, 2) };
    let shares: Vec<u32> = (0..400)
        .map(|look| {
            // At first tasks had all of the time.
            let data = if look < 20 { Requests::default() } else { long };
            governor.look(&Seen { data, during: LOOK, ..Seen::default() })
        })
        .collect();
    assert!(shares[300..].iter().all(|share| *share == ALL_PERMILLE), "{shares:?}");
}

/// A disk that hangs once while tasks rest.
#[test]
fn what_hung_once_does_not_excuse_what_hangs_later() {
    let waiting = |ms: u64| Requests { waiting: 1, waiting_nanos: ms * 1_000_000, ..took(100, 20, 0) };
    let mut judge = Judge::default();
    judge.look(&waiting(0), LOOK, Tasks::Rest);
    judge.look(&waiting(5_000), LOOK, Tasks::Rest);
    judge.look(&waiting(0), LOOK, Tasks::Work);
    for _ in 0..2 {
        assert_ne!(
            judge.look(&waiting(900), LOOK, Tasks::Work),
            Some(Verdict::Suffers),
            "it was seen at rest"
        );
    }
    assert_ne!(judge.look(&waiting(1_100), LOOK, Tasks::Work), Some(Verdict::Suffers), "one look is none");
    assert_eq!(judge.look(&waiting(1_100), LOOK, Tasks::Work), Some(Verdict::Suffers));
    // Four minutes.
    (0..4_800).for_each(|_| {
        judge.look(&waiting(0), LOOK, Tasks::Work);
    });
    judge.look(&waiting(60), LOOK, Tasks::Work);
    assert_eq!(judge.look(&waiting(60), LOOK, Tasks::Work), Some(Verdict::Suffers), "it is long forgotten");
}

#[test]
fn one_look_that_meets_a_long_request_takes_nothing_away() {
    let mut governor = Governor::default();
    let shares: Vec<u32> = (0..200)
        .map(|look| {
            let waiting = u64::from(look % 10 == 0);
            let data = Requests { waiting, waiting_nanos: waiting * 80_000_000, ..took(100, 20, 0) };
            governor.look(&Seen { data, during: LOOK, ..Seen::default() })
        })
        .collect();
    assert!(shares.is_sorted() && shares.last() == Some(&ALL_PERMILLE), "{shares:?}");
}

#[test]
fn a_guest_that_goes_gives_the_time_back_at_once() {
    let mut governor = Governor::default();
    (0..20).for_each(|n| {
        governor.look(&seen(100, if n < 5 { 20 } else { 900 }, 0));
    });
    assert_eq!(governor.look(&seen(100, 900, 0)), LEAST_PERMILLE);
    assert!(governor.sees_guests());
    let looks = (0..20).take_while(|_| governor.look(&seen(0, 0, 0)) < ALL_PERMILLE).count();
    assert!(looks <= 10 && !governor.sees_guests(), "{looks}");
}

/// Against a model: each request takes 20 µs, and 10 more for each tenth of the time that tasks work beyond three.
#[test]
fn it_settles_where_guests_begin_to_suffer() {
    let mut governor = Governor::default();
    let mut share = FIRST_PERMILLE;
    let mut shares = Vec::new();
    for _ in 0..2_000 {
        let micros = 20 + u64::from(share.saturating_sub(300)) / 10;
        share = governor.look(&seen(100, micros, 0));
        shares.push(u64::from(share));
    }
    let settled = shares[200..].iter().sum::<u64>() / shares[200..].len() as u64;
    assert!((200..600).contains(&settled), "{settled}");
    assert!(shares[200..].iter().all(|share| *share < 900));
}

/// Against a model of a disk: a guest that sends the next request when the one before is done, each of which takes 8 ms,
/// and up to 30 ms the more tasks work beyond three tenths of the time. It has fewer requests the more it suffers.
#[test]
fn a_guest_that_waits_for_each_request_is_not_taken_for_idle() {
    for is_flush in [false, true] {
        let mut governor = Governor::default();
        let (mut share, mut left_micros, mut shares) = (FIRST_PERMILLE, 0, Vec::new());
        for look in 0..3_000 {
            // At first, as if tasks had all of the time: so it was when the guest was taken for idle.
            let working = if (200..300).contains(&look) { ALL_PERMILLE } else { share };
            let micros_each = 8_000 + u64::from(working.saturating_sub(300)) * 32;
            let micros = left_micros + LOOK.as_micros() as u64;
            left_micros = micros % micros_each;
            let count = micros / micros_each;
            let requests = took(count, micros_each, count);
            let (data, flushes) =
                if is_flush { (Requests::default(), requests) } else { (requests, Requests::default()) };
            share = governor.look(&Seen { data, flushes, is_stalled: count == 0, during: LOOK });
            shares.push(u64::from(share));
            assert!(look < 20 || governor.sees_guests(), "{look}: {share}");
        }
        assert!(shares[250..300].iter().all(|share| *share < 200), "{:?}", &shares[200..300]);
        let settled = shares[300..].iter().sum::<u64>() / shares[300..].len() as u64;
        assert!((100..700).contains(&settled), "{settled}");
        assert!(shares[300..].iter().all(|share| *share < 950), "{:?}", shares.iter().max());
    }
}

#[test]
fn requests_that_do_not_come_back_take_the_share_down() {
    let at_work = || {
        let mut governor = Governor::default();
        (0..50).for_each(|_| {
            governor.look(&seen(100, 20, 0));
        });
        governor
    };
    let mut governor = at_work();
    let stalled = Seen { is_stalled: true, during: LOOK, ..Seen::default() };
    let shares: Vec<u32> = (0..80).map(|_| governor.look(&stalled)).collect();
    assert!(shares.is_sorted_by(|one, next| one >= next) && governor.sees_guests(), "{shares:?}");
    assert_eq!((shares[8], shares[10], shares.last()), (1000, 500, Some(&LEAST_PERMILLE)));
    // Where nothing told of the stall, the request tells of it at its end.
    let mut governor = at_work();
    (0..40).for_each(|_| {
        governor.look(&seen(0, 0, 0));
    });
    assert!(!governor.sees_guests());
    (0..10).for_each(|look| {
        governor.look(&seen(u64::from(look == 0), 2_000_000, 1));
    });
    assert_eq!(governor.look(&seen(0, 0, 0)), FIRST_PERMILLE / 2);
}

#[test]
fn a_flush_now_and_then_is_not_compared_with_writes() {
    let mut governor = Governor::default();
    let shares: Vec<u32> = (0..300)
        .map(|look| {
            let flushes = took(u64::from(look % 20 == 7) * 2, 5_000, 2);
            governor.look(&Seen { flushes, ..seen(100, 20, 0) })
        })
        .collect();
    assert!(shares.is_sorted() && shares.last() == Some(&ALL_PERMILLE), "{shares:?}");
    // Many that take longer than they did count.
    let shares: Vec<u32> =
        (0..150).map(|_| governor.look(&Seen { flushes: took(20, 1_000, 0), ..seen(100, 20, 0) })).collect();
    assert_eq!(
        (shares[0], shares[149]),
        (LEAST_PERMILLE, ALL_PERMILLE),
        "nobody knew what is usual: {shares:?}"
    );
    let share = governor.look(&Seen { flushes: took(20, 4_000, 20), ..seen(100, 20, 0) });
    assert_eq!(share, ALL_PERMILLE / 2);
}

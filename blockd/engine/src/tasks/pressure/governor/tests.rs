//! Tests of this module.

use super::*;

const INTERVAL: Duration = Duration::from_millis(50);

fn seen(requests: u64, micros_each: u64, slow: u64) -> Sample {
    Sample { data: took(requests, micros_each, slow), during: INTERVAL, ..Sample::default() }
}

fn took(count: u64, micros_each: u64, slow: u64) -> Requests {
    Requests { count, nanos: count * micros_each * 1000, slow, ..Requests::default() }
}

#[test]
fn tasks_have_all_of_the_time_without_guests() {
    let mut governor = Governor::default();
    for _ in 0..100 {
        assert_eq!(governor.next_share(&seen(0, 0, 0)), ALL_PERMILLE);
    }
    // A few sporadic requests are no active guest.
    for _ in 0..100 {
        assert_eq!(governor.next_share(&seen(1, 500, 0)), ALL_PERMILLE);
    }
}

#[test]
fn share_grows_to_all_while_guests_do_not_suffer() {
    let mut governor = Governor::default();
    let first = governor.next_share(&seen(100, 20, 0));
    assert_eq!(first, MIN_PERMILLE, "the baseline is learned first");
    let mut last = first;
    for _ in 0..50 {
        let share = governor.next_share(&seen(100, 20, 0));
        assert!(share >= last);
        last = share;
    }
    assert_eq!(last, ALL_PERMILLE);
}

#[test]
fn share_is_halved_while_requests_suffer_and_recovers() {
    for bad in [seen(100, 200, 0), seen(100, 20, 2)] {
        let mut governor = Governor::default();
        (0..50).for_each(|_| {
            governor.next_share(&seen(100, 20, 0));
        });
        assert_eq!(governor.next_share(&bad), ALL_PERMILLE / 2);
        assert_eq!(governor.next_share(&bad), ALL_PERMILLE / 4);
        (0..10).for_each(|_| {
            governor.next_share(&bad);
        });
        assert_eq!(governor.next_share(&bad), MIN_PERMILLE, "it never falls below the minimum");
        let shares: Vec<u32> = (0..60).map(|_| governor.next_share(&seen(100, 20, 0))).collect();
        assert!(shares.is_sorted() && shares.last() == Some(&ALL_PERMILLE), "{shares:?}");
    }
}

#[test]
fn changed_guest_load_becomes_the_baseline() {
    let mut governor = Governor::default();
    (0..50).for_each(|_| {
        governor.next_share(&seen(100, 20, 0));
    });
    // The guest now writes megabytes, which take as long under any share.
    let shares: Vec<u32> = (0..600).map(|_| governor.next_share(&seen(100, 2_000, 3))).collect();
    assert_eq!(shares.iter().min(), Some(&MIN_PERMILLE));
    assert_eq!(shares.last(), Some(&ALL_PERMILLE));
}

/// Model: above three tenths of the time, requests take four times as long, and for a while after that,
/// as long as a disk writes out its queue.
#[test]
fn effect_of_tasks_does_not_become_the_baseline() {
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
            share = governor.next_share(&seen(100, if suffers { 80 } else { 20 }, 0));
            shares.push(share);
        }
        let last = &shares[6_000..];
        assert!(last.iter().all(|share| *share <= 300 + STEP_PERMILLE), "{lag}: {:?}", last.iter().max());
        assert!(last.iter().any(|share| *share > 200), "{lag}: it probes again");
        assert!(late < 6_000 * (2 + lag) / (14 + lag), "{lag}: {late} of 6000");
    }
}

#[test]
fn noise_does_not_reduce_the_share() {
    let mut governor = Governor::default();
    let mut number = 1u64;
    let mut shares = Vec::new();
    for _ in 0..2_000 {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // 80 to 120 µs, and sporadic slow requests.
        shares.push(u64::from(governor.next_share(&seen(
            100,
            80 + (number >> 33) % 40,
            u64::from((number >> 40).is_multiple_of(64)),
        ))));
    }
    let settled = shares[200..].iter().sum::<u64>() / shares[200..].len() as u64;
    assert!(settled > 700, "{settled}");
}

/// A guest keeps 32 requests in flight, and none or only few of them complete.
#[test]
fn late_requests_in_flight_reduce_the_share_at_once() {
    for comes_back in [0, 1] {
        let mut governor = Governor::default();
        (0..50).for_each(|_| {
            governor.next_share(&Sample {
                data: Requests { waiting: 32, waiting_nanos: 32 * 10_000, ..took(100, 20, 0) },
                ..seen(0, 0, 0)
            });
        });
        let shares: Vec<u32> = (0..10)
            .map(|look| {
                let waiting_nanos = 31 * look * INTERVAL.as_nanos() as u64;
                let done = took(comes_back, 40_000 * look, comes_back);
                governor.next_share(&Sample {
                    data: Requests { waiting: 31, waiting_nanos, ..done },
                    during: INTERVAL,
                    ..Sample::default()
                })
            })
            .collect();
        assert_eq!(shares[..4], [1000, 1000, 500, 250], "{shares:?}");
        assert!(shares[8] <= 2 * MIN_PERMILLE && governor.sees_guests(), "{shares:?}");
    }
    // Requests that take as long under any share are not late.
    let mut governor = Governor::default();
    let slow = Requests { waiting: 32, waiting_nanos: 32 * 60_000_000, ..took(27, 60_000, 27) };
    let shares: Vec<u32> = (0..300)
        .map(|_| governor.next_share(&Sample { data: slow, during: INTERVAL, ..Sample::default() }))
        .collect();
    assert_eq!(shares.last(), Some(&ALL_PERMILLE), "{shares:?}");
}

#[test]
fn share_is_all_soon_after_a_guest_becomes_idle() {
    let mut governor = Governor::default();
    (0..20).for_each(|n| {
        governor.next_share(&seen(100, if n < 5 { 20 } else { 900 }, 0));
    });
    assert_eq!(governor.next_share(&seen(100, 900, 0)), MIN_PERMILLE);
    assert!(governor.sees_guests());
    let looks = (0..20).take_while(|_| governor.next_share(&seen(0, 0, 0)) < ALL_PERMILLE).count();
    assert!(looks <= 10 && !governor.sees_guests(), "{looks}");
}

/// Model: each request takes 20 µs, and 10 µs more for each tenth of the time above three tenths.
#[test]
fn share_settles_below_the_guest_latency_limit() {
    let mut governor = Governor::default();
    let mut share = FIRST_PERMILLE;
    let mut shares = Vec::new();
    for _ in 0..2_000 {
        let micros = 20 + u64::from(share.saturating_sub(300)) / 10;
        share = governor.next_share(&seen(100, micros, 0));
        shares.push(u64::from(share));
    }
    let settled = shares[200..].iter().sum::<u64>() / shares[200..].len() as u64;
    assert!((200..600).contains(&settled), "{settled}");
    assert!(shares[200..].iter().all(|share| *share < 900));
}

/// Model of a disk: a guest sends one request at a time. Each takes 8 ms, and up to 30 ms with a
/// growing share above three tenths. The guest has fewer requests the more it suffers.
#[test]
fn guest_with_one_request_at_a_time_is_not_idle() {
    for is_flush in [false, true] {
        let mut governor = Governor::default();
        let (mut share, mut left_micros, mut shares) = (FIRST_PERMILLE, 0, Vec::new());
        for look in 0..3_000 {
            // Once with all of the time for tasks, as if the guest had counted as idle.
            let working = if (200..300).contains(&look) { ALL_PERMILLE } else { share };
            let micros_each = 8_000 + u64::from(working.saturating_sub(300)) * 32;
            let micros = left_micros + INTERVAL.as_micros() as u64;
            left_micros = micros % micros_each;
            let count = micros / micros_each;
            let requests = took(count, micros_each, count);
            let (data, flushes) =
                if is_flush { (Requests::default(), requests) } else { (requests, Requests::default()) };
            share = governor.next_share(&Sample { data, flushes, is_stalled: count == 0, during: INTERVAL });
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
fn stalled_requests_reduce_the_share() {
    let at_work = || {
        let mut governor = Governor::default();
        (0..50).for_each(|_| {
            governor.next_share(&seen(100, 20, 0));
        });
        governor
    };
    let mut governor = at_work();
    let stalled = Sample { is_stalled: true, during: INTERVAL, ..Sample::default() };
    let shares: Vec<u32> = (0..80).map(|_| governor.next_share(&stalled)).collect();
    assert!(shares.is_sorted_by(|one, next| one >= next) && governor.sees_guests(), "{shares:?}");
    assert_eq!((shares[8], shares[10], shares.last()), (1000, 500, Some(&MIN_PERMILLE)));
    // Without a detected stall, the request counts when it completes.
    let mut governor = at_work();
    (0..40).for_each(|_| {
        governor.next_share(&seen(0, 0, 0));
    });
    assert!(!governor.sees_guests());
    (0..10).for_each(|look| {
        governor.next_share(&seen(u64::from(look == 0), 2_000_000, 1));
    });
    assert_eq!(governor.next_share(&seen(0, 0, 0)), FIRST_PERMILLE / 2);
}

#[test]
fn sporadic_flushes_are_judged_separately() {
    let mut governor = Governor::default();
    let shares: Vec<u32> = (0..300)
        .map(|look| {
            let flushes = took(u64::from(look % 20 == 7) * 2, 5_000, 2);
            governor.next_share(&Sample { flushes, ..seen(100, 20, 0) })
        })
        .collect();
    assert!(shares.is_sorted() && shares.last() == Some(&ALL_PERMILLE), "{shares:?}");
    // Many flushes that take longer than their baseline count.
    let shares: Vec<u32> = (0..100)
        .map(|_| governor.next_share(&Sample { flushes: took(20, 1_000, 0), ..seen(100, 20, 0) }))
        .collect();
    assert_eq!((shares[0], shares[99]), (MIN_PERMILLE, ALL_PERMILLE), "the baseline was unknown: {shares:?}");
    let share = governor.next_share(&Sample { flushes: took(20, 4_000, 20), ..seen(100, 20, 0) });
    assert_eq!(share, ALL_PERMILLE / 2);
}

use super::*;
use proptest::prelude::*;

const BUDGET: VerifyBudget = VerifyBudget { bytes_per_day: 1000, requests_per_day: 100 };

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn days(count: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * count)
}

fn chain(newest: i64, read: Option<i64>, read_bytes: u64) -> VerifyChain {
    VerifyChain { newest: at(newest), read: read.map(at), read_bytes, requests: 1 }
}

#[test]
fn new_backup_is_read_before_the_oldest_proof() {
    let mut chains = vec![chain(1, Some(50), 1), chain(2, None, 1), chain(3, None, 1), chain(4, Some(40), 1)];
    let next = |chains: &[VerifyChain], turn| next_chain(chains, turn, at(100), at(45));
    assert_eq!(next(&chains, Turn::New), Some((2, Turn::Overdue)));
    assert_eq!(next(&chains, Turn::Overdue), Some((3, Turn::New)), "not read for a period");
    chains[3].read = Some(at(60));
    assert_eq!(next(&chains, Turn::Overdue), Some((2, Turn::Overdue)), "none is overdue");
    chains.drain(1..3);
    assert_eq!(next(&chains, Turn::New), Some((0, Turn::New)));
    let all_read = [chain(1, Some(100), 1)];
    assert_eq!((next(&all_read, Turn::New), next(&[], Turn::New)), (None, None));
}

#[test]
fn period_follows_the_tighter_budget() {
    let chains = [chain(1, None, 3500), VerifyChain { requests: 150, ..chain(1, None, 10) }];
    assert_eq!(BUDGET.period(&chains), days(5));
    let raised = BUDGET.raised_to(&chains, days(2)).unwrap();
    assert_eq!(raised, VerifyBudget { bytes_per_day: 2500, requests_per_day: 250 });
    assert_eq!((raised.period(&chains), raised.raised_to(&chains, days(2))), (days(2), None));
    let endless = VerifyBudget { bytes_per_day: 0, requests_per_day: 1 };
    assert!(endless.period(&[chain(1, None, u64::MAX), chain(1, None, u64::MAX)]) > days(70_000));
}

proptest! {
    /// Chains are read within the stated period. New ones, which are at most half of the turns, double it.
    #[test]
    fn chains_are_read_within_the_period(
        costs in prop::collection::vec((1..2000u64, 1..200u64), 1..20),
        new_every in prop::option::of(1..5usize),
        new_cost in 1..2000u64,
    ) {
        let mut chains: Vec<VerifyChain> = costs
            .iter()
            .enumerate()
            .map(|(n, (read_bytes, requests))| VerifyChain {
                newest: at(n as i64),
                read: None,
                read_bytes: *read_bytes,
                requests: *requests,
            })
            .collect();
        let count = chains.len();
        let period = BUDGET.period(&chains);
        let longest = chains.iter().map(|one| BUDGET.time_for(one.read_bytes, one.requests)).max().unwrap();
        let new_time = BUDGET.time_for(new_cost, 1);
        let (mut now, mut turn, mut last) = (at(100), Turn::New, vec![at(100); count]);
        for step in 0..count * 6 {
            // The new chain is deleted when it was read, and the next one made.
            if new_every.is_some_and(|every| step % every == 0) {
                chains.truncate(count);
                chains.push(chain(1_000_000 + step as i64, None, new_cost));
            }
            let Some((next, after)) = next_chain(&chains, turn, now, now - period) else { break };
            turn = after;
            now += BUDGET.time_for(chains[next].read_bytes, chains[next].requests);
            chains[next].read = Some(now);
            if let Some(last) = last.get_mut(next) {
                let limit = match new_every {
                    None => period,
                    // Each turn may have a new chain before it.
                    Some(_) => period + period + longest + new_time * (2 * count as i32 + 2),
                };
                prop_assert!(now.duration_since(*last) <= limit, "{next} of {count}");
                *last = now;
            }
        }
    }
}

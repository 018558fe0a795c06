//! Costs of tasks: amounts of money, price tables, and estimates before a task runs.

use crate::{VolumeName, tasks::Requests, text::as_text};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Price table of locations without their own.
pub const DEFAULT_PRICES: &str = "default";

/// Decimal places of an amount.
const PLACES: usize = 6;
/// Parts of a unit of the currency.
const PARTS: i64 = 1_000_000;

/// Amount in millionths of the currency; text such as `0.0054`. Negative amounts are savings.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Money(i64);

/// Text that is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an amount: expected such as 12, 0.5 or 0.0004, with up to {PLACES} decimal places")]
pub struct BadMoney {
    /// Given text.
    given: String,
}

impl Money {
    /// Creates an amount from millionths of the currency.
    pub const fn from_millionths(millionths: i64) -> Self {
        Self(millionths)
    }

    /// Returns the millionths of the currency.
    pub const fn as_millionths(self) -> i64 {
        self.0
    }

    /// Returns the price of `count` of `unit` things that cost this amount together, rounded up.
    fn times(self, count: u64, unit: u64) -> Self {
        let exact = i128::from(self.0) * i128::from(count);
        let unit = i128::from(unit.max(1));
        Self(i64::try_from((exact + unit - 1).div_euclid(unit)).unwrap_or(i64::MAX))
    }

    fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, all) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let (whole, parts) = (all / PARTS.unsigned_abs(), all % PARTS.unsigned_abs());
        let parts = format!("{parts:0PLACES$}");
        // At least cents.
        let shown = parts.trim_end_matches('0').len().max(2);
        f.pad(&format!("{sign}{whole}.{}", &parts[..shown]))
    }
}

impl FromStr for Money {
    type Err = BadMoney;

    fn from_str(text: &str) -> Result<Self, BadMoney> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let parse = || {
            let (negative, plain) = match text.strip_prefix('-') {
                Some(rest) => (true, rest),
                None => (false, text),
            };
            let (whole, parts) = plain.split_once('.').unwrap_or((plain, "0"));
            if whole.is_empty()
                || parts.is_empty()
                || parts.len() > PLACES
                || !digits(whole)
                || !digits(parts)
            {
                return None;
            }
            let whole = whole.parse::<i64>().ok()?.checked_mul(PARTS)?;
            let all = whole.checked_add(format!("{parts:0<PLACES$}").parse().ok()?)?;
            Some(Self(if negative { -all } else { all }))
        };
        parse().ok_or_else(|| BadMoney { given: text.to_owned() })
    }
}

as_text!(Money);

/// Prices of a store. All are zero by default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prices {
    /// Name of the currency in reports.
    pub currency: String,
    /// 1,000 PUT requests, including parts of multipart uploads.
    pub put_per_1000: Money,
    /// 1,000 GET and HEAD requests.
    pub get_per_1000: Money,
    /// 1,000 pages of listings.
    pub list_per_1000: Money,
    /// 1,000 DELETE requests.
    pub delete_per_1000: Money,
    /// 1 GiB read from the store.
    pub egress_per_gib: Money,
    /// 1 GiB stored for a month.
    pub storage_per_gib_month: Money,
}

impl Default for Prices {
    fn default() -> Self {
        let free = Money::default();
        Self {
            currency: "USD".to_owned(),
            put_per_1000: free,
            get_per_1000: free,
            list_per_1000: free,
            delete_per_1000: free,
            egress_per_gib: free,
            storage_per_gib_month: free,
        }
    }
}

impl Prices {
    /// Returns the list prices of S3 Standard in us-east-1, <https://aws.amazon.com/s3/pricing/>.
    pub fn s3_standard() -> Self {
        Self {
            put_per_1000: Money(5_000),
            list_per_1000: Money(5_000),
            get_per_1000: Money(400),
            egress_per_gib: Money(90_000),
            storage_per_gib_month: Money(23_000),
            ..Self::default()
        }
    }

    /// Returns true if an amount is negative.
    pub fn has_negative(&self) -> bool {
        let requests = [self.put_per_1000, self.get_per_1000, self.list_per_1000, self.delete_per_1000];
        let bytes = [self.egress_per_gib, self.storage_per_gib_month];
        requests.into_iter().chain(bytes).any(|amount| amount < Money::default())
    }

    /// Returns the price of requests.
    pub fn of_requests(&self, requests: &Requests) -> Money {
        let of = |price: Money, count: u64| price.times(count, 1000);
        of(self.put_per_1000, requests.put)
            .plus(of(self.get_per_1000, requests.get.saturating_add(requests.head)))
            .plus(of(self.list_per_1000, requests.list))
            .plus(of(self.delete_per_1000, requests.delete))
    }

    /// Returns the price of requests and of the bytes that they read.
    pub fn of_task(&self, requests: &Requests, download_bytes: u64) -> Money {
        self.of_requests(requests).plus(self.egress_per_gib.times(download_bytes, 1 << 30))
    }

    /// Returns the price of an estimate.
    pub fn of(&self, estimate: &CostEstimate) -> CostPrice {
        let of_month = |bytes| self.storage_per_gib_month.times(bytes, 1 << 30);
        let storage = of_month(estimate.added_bytes).0.saturating_sub(of_month(estimate.freed_bytes).0);
        CostPrice {
            currency: self.currency.clone(),
            requests: self.of_requests(&estimate.requests),
            egress: self.egress_per_gib.times(estimate.download_bytes, 1 << 30),
            total: self.of_task(&estimate.requests, estimate.download_bytes),
            storage_per_month: Money(storage),
        }
    }
}

/// Costs of a task before it runs, or of a collection that ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CostEstimate {
    /// Credential.
    pub credential_id: Uuid,
    /// Name of the credential.
    pub credential_name: String,
    /// Volume of a backup, or source volume on this host of a restore or drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_name: Option<VolumeName>,
    /// Store requests.
    pub requests: Requests,
    /// Bytes sent to the store.
    pub upload_bytes: u64,
    /// Bytes received from the store: egress.
    pub download_bytes: u64,
    /// Bytes that are stored in addition.
    pub added_bytes: u64,
    /// Bytes that are freed.
    pub freed_bytes: u64,
    /// Uncertainty (±) of the uploaded and stored bytes, in percent, at a confidence of 95 %; `None` up to
    /// 5 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncertainty_percent: Option<u32>,
    /// Origin of the figures.
    pub basis: String,
    /// Price; `None` without a price table for the location.
    pub price: Option<CostPrice>,
}

impl CostEstimate {
    /// Adds the price.
    #[must_use]
    pub fn priced(self, prices: Option<&Prices>) -> Self {
        Self { price: prices.map(|prices| prices.of(&self)), ..self }
    }
}

/// Price of an estimate, by the price table of the daemon's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CostPrice {
    /// Currency.
    pub currency: String,
    /// Requests.
    pub requests: Money,
    /// Bytes received from the store.
    pub egress: Money,
    /// Sum of both.
    pub total: Money,
    /// Change of the price of the stored bytes, per month.
    pub storage_per_month: Money,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn amount(text: &str) -> Money {
        text.parse().unwrap()
    }

    #[test]
    fn amounts_have_an_exact_text() {
        for (text, millionths, shown) in [
            ("0", 0, "0.00"),
            ("12", 12_000_000, "12.00"),
            ("0.0004", 400, "0.0004"),
            ("1.5", 1_500_000, "1.50"),
            ("-0.25", -250_000, "-0.25"),
            ("0.000001", 1, "0.000001"),
        ] {
            assert_eq!(amount(text).as_millionths(), millionths);
            assert_eq!(amount(text).to_string(), shown);
        }
        for bad in ["", ".5", "5.", "1,5", "0.0000001", "1e3", "+1", "$1", "99999999999999999999"] {
            assert!(bad.parse::<Money>().is_err(), "{bad}");
        }
    }

    #[test]
    fn price_is_that_of_the_table() {
        let prices = Prices::s3_standard();
        let estimate = CostEstimate {
            credential_id: Uuid::nil(),
            credential_name: "nas".into(),
            volume_name: None,
            requests: Requests { put: 2_000, get: 10_000, delete: 500, ..Requests::default() },
            upload_bytes: 1 << 40,
            download_bytes: 3 << 30,
            added_bytes: 1 << 40,
            uncertainty_percent: None,
            freed_bytes: 1 << 30,
            basis: String::new(),
            price: None,
        };
        let price = estimate.priced(Some(&prices)).price.unwrap();
        assert_eq!((price.requests, price.egress), (amount("0.014"), amount("0.27")));
        assert_eq!((price.total, price.storage_per_month), (amount("0.284"), amount("23.529")));
    }

    proptest! {
        #[test]
        fn amounts_round_trip(millionths in any::<i32>()) {
            let money = Money::from_millionths(i64::from(millionths) * 7);
            prop_assert_eq!(money.to_string().parse(), Ok(money));
        }

        /// More requests and bytes never cost less, and the sum of two tasks is at most a rounding apart from
        /// the price of both together.
        #[test]
        fn price_grows_with_the_task(
            prices in proptest::array::uniform5(0u32..1_000_000_000),
            one in proptest::array::uniform4(0u32..),
            more in proptest::array::uniform4(0u32..),
            bytes in (any::<u32>(), any::<u32>()),
        ) {
            let [put, get, list, delete, egress] = prices.map(|price| Money(price.into()));
            let prices = Prices {
                put_per_1000: put,
                get_per_1000: get,
                list_per_1000: list,
                delete_per_1000: delete,
                egress_per_gib: egress,
                ..Prices::default()
            };
            let requests = |[put, get, list, delete]: [u64; 4]| Requests { put, get, list, delete, head: 0 };
            let (one, more) = (one.map(u64::from), more.map(u64::from));
            let both: [u64; 4] = std::array::from_fn(|at| one[at] + more[at]);
            let (first, second) = (u64::from(bytes.0) << 20, u64::from(bytes.1) << 20);
            let of_one = prices.of_task(&requests(one), first);
            let of_more = prices.of_task(&requests(more), second);
            let of_both = prices.of_task(&requests(both), first + second);
            prop_assert!(of_both >= of_one && of_both >= of_more && of_one >= Money(0));
            let sum = of_one.plus(of_more);
            prop_assert!(of_both <= sum && sum.0 - of_both.0 <= 5, "{} of {}", of_both, sum);
            // Exactly, in wide numbers.
            let exact = |price: Money, count: u64, unit: u128| (price.0 as u128 * u128::from(count)).div_ceil(unit);
            let wide = exact(put, one[0], 1000) + exact(get, one[1], 1000) + exact(list, one[2], 1000)
                + exact(delete, one[3], 1000) + exact(egress, first, 1 << 30);
            prop_assert_eq!(of_one.0 as u128, wide);
        }
    }
}

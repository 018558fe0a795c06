//! Bucket with request limits by partition, and its request rates.

use crate::{
    costs::{Area, Step},
    fleet::FULL_HOSTS,
};
use blockd_api::{costs::Prices, tasks::Requests};
use blockd_store::RequestKind;
use std::ops::Range;

/// PUT, COPY, POST and DELETE requests per second that S3 serves at least for each partitioned prefix:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html>.
pub const S3_WRITES_PER_S: u32 = 3_500;
/// GET and HEAD requests, same source. Listings are counted here, which the source leaves open.
pub const S3_READS_PER_S: u32 = 5_500;
/// Keys of a page of a listing:
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html>.
pub const PAGE_KEYS: u64 = 1_000;

/// Requests by kind.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    pub put: u64,
    pub get: u64,
    pub list: u64,
    pub delete: u64,
}

impl Counts {
    pub fn add(&mut self, kind: RequestKind, times: u64) {
        match kind {
            RequestKind::Put | RequestKind::Multipart => self.put += times,
            RequestKind::Get => self.get += times,
            RequestKind::List => self.list += times,
            RequestKind::Delete => self.delete += times,
        }
    }

    pub const fn total(&self) -> u64 {
        self.put + self.get + self.list + self.delete
    }

    /// Returns the price of S3 Standard in US dollars.
    pub fn dollars(&self) -> f64 {
        let Self { put, get, list, delete } = *self;
        let price = Prices::s3_standard().of_requests(&Requests { put, get, list, delete, head: 0 });
        price.as_millionths() as f64 / 1e6
    }
}

/// Response to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Served,
    /// 503.
    Throttled,
    Unreachable,
}

/// Number of requests in each second.
#[derive(Clone, Default)]
pub struct Rates(Vec<u32>);

impl Rates {
    fn add(&mut self, second: usize) -> u32 {
        if self.0.len() <= second {
            self.0.resize(second + 1, 0);
        }
        self.0[second] += 1;
        self.0[second]
    }

    pub fn peak(&self) -> u32 {
        self.0.iter().copied().max().unwrap_or(0)
    }

    /// Returns the rate that 99 % of all seconds do not exceed.
    pub fn p99(&self, seconds: usize) -> u32 {
        let mut sorted = self.0.clone();
        sorted.resize(seconds.max(sorted.len()), 0);
        sorted.sort_unstable();
        sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0)
    }
}

/// Configuration of a bucket.
#[derive(Clone)]
pub struct Settings {
    pub hosts: u32,
    /// Partitions, each with an equal range of the hosts' prefixes; `None` for as many as needed.
    pub partitions: Option<u32>,
    /// Time without responses, in seconds.
    pub outage_s: Range<i64>,
}

/// Bucket of a region. Each host has a prefix of its own.
pub struct Bucket {
    settings: Settings,
    limits: [u32; 2],
    /// Served writes and reads of each partition in the current second.
    current: Vec<[u32; 2]>,
    second: i64,
    /// Second of the last request of each host, and the requests in it.
    hosts: Vec<(i64, u32)>,
    /// Peak rate of the prefix of one host.
    pub host_peak: u32,
    /// All attempts: writes, reads.
    pub attempts: [Rates; 2],
    pub by_area: [Rates; Area::ALL.len()],
    /// Served requests.
    pub served: Counts,
    pub throttled: u64,
}

impl Bucket {
    pub fn new(settings: Settings) -> Self {
        // A smaller fleet is a model of the full one, with limits in proportion.
        let limit = |full: u32| (u64::from(full) * u64::from(settings.hosts)).div_ceil(FULL_HOSTS.into());
        Self {
            limits: [limit(S3_WRITES_PER_S) as u32, limit(S3_READS_PER_S) as u32],
            current: vec![[0; 2]; settings.partitions.unwrap_or(1) as usize],
            second: i64::MIN,
            hosts: vec![(i64::MIN, 0); settings.hosts as usize],
            host_peak: 0,
            attempts: Default::default(),
            by_area: Default::default(),
            served: Counts::default(),
            throttled: 0,
            settings,
        }
    }

    /// Returns the limits of a partition: writes and reads per second.
    pub const fn limits(&self) -> [u32; 2] {
        self.limits
    }

    /// Answers a request. Times do not decrease.
    pub fn request(&mut self, at_ms: i64, host: u32, step: Step) -> Answer {
        let second = at_ms / 1000;
        if second > self.second {
            self.second = second;
            self.current.fill([0; 2]);
        }
        let is_read = matches!(step.kind, RequestKind::Get | RequestKind::List);
        let index = usize::try_from(second).unwrap_or(0);
        self.attempts[usize::from(is_read)].add(index);
        self.by_area[step.area as usize].add(index);
        let (last, count) = &mut self.hosts[host as usize];
        *count = if *last == second { *count + 1 } else { 1 };
        *last = second;
        self.host_peak = self.host_peak.max(*count);
        if self.settings.outage_s.contains(&second) {
            return Answer::Unreachable;
        }
        if let Some(partitions) = self.settings.partitions {
            let partition = u64::from(host) * u64::from(partitions) / u64::from(self.settings.hosts);
            let served = &mut self.current[partition as usize][usize::from(is_read)];
            if *served >= self.limits[usize::from(is_read)] {
                self.throttled += 1;
                return Answer::Throttled;
            }
            *served += 1;
        }
        self.served.add(step.kind, 1);
        Answer::Served
    }
}

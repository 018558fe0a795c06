use super::*;
use jiff::civil::date;
use proptest::prelude::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn next(schedule: &str, after: &str) -> String {
    let schedule: Recurrence = schedule.parse().unwrap();
    schedule.next_after(at(after)).map_or_else(|| "never".into(), |at| at.to_string())
}

#[test]
fn common_text_forms_are_parsed() {
    let now = "2026-03-10T12:34:56Z"; // A Tuesday.
    for (schedule, expected) in [
        ("periodic 60", "2026-03-10T13:00:00Z"),
        ("periodic 15min", "2026-03-10T12:45:00Z"),
        ("daily 12:34", "2026-03-11T12:34:00Z"),
        ("daily @12:35", "2026-03-10T12:35:00Z"),
        ("daily 10:14PM", "2026-03-10T22:14:00Z"),
        ("daily 12:00AM", "2026-03-11T00:00:00Z"),
        ("weekly Thursday@10:13PM", "2026-03-12T22:13:00Z"),
        ("weekly tue@12:00", "2026-03-17T12:00:00Z"),
        ("weekly sun@12:00/1", "2026-03-15T12:00:00Z"),
        ("weekly sun@12:00/2", "2026-03-22T12:00:00Z"),
        ("weekly sun@12:00/2+1", "2026-03-15T12:00:00Z"),
        ("monthly 14@8:05PM", "2026-03-14T20:05:00Z"),
        ("monthly 10@00:00", "2026-04-10T00:00:00Z"),
        ("cron 30 2 * * 1-5", "2026-03-11T02:30:00Z"),
        ("cron 0 0 13 * fri", "2026-03-13T00:00:00Z"),
        ("cron 0 0 11 * fri", "2026-03-11T00:00:00Z"),
        ("cron @weekly", "2026-03-15T00:00:00Z"),
        ("cron 0 0 29 2 *", "2028-02-29T00:00:00Z"),
        ("cron 0 0 * * 7", "2026-03-15T00:00:00Z"),
        ("cron 5/20 * * * *", "2026-03-10T12:45:00Z"),
        ("calendar Mon..Fri *-*-* 02:30:00", "2026-03-11T02:30:00Z"),
        ("calendar *-*~01 00:00", "2026-03-31T00:00:00Z"),
        ("calendar Sun *-*~07/1 05:00", "2026-03-29T05:00:00Z"),
        ("calendar quarterly", "2026-04-01T00:00:00Z"),
        ("calendar *:0/15", "2026-03-10T12:45:00Z"),
        ("calendar 2027..2028-12-24", "2027-12-24T00:00:00Z"),
        ("calendar 2020-01-01", "never"),
        ("calendar Thu 2026-02~03", "never"),
        ("daily 12:00 Europe/Berlin", "2026-03-11T11:00:00Z"),
    ] {
        assert_eq!(next(schedule, now), expected, "{schedule}");
    }
}

#[test]
fn second_weeks_alternate_with_the_others() {
    // The week of 1970-01-05 is the first one. Local dates count, also across the end of a year.
    assert_eq!(next("weekly mon@00:00/2", "1970-01-01T00:00:00Z"), "1970-01-05T00:00:00Z");
    for zone in ["UTC", "Pacific/Auckland", "America/Los_Angeles"] {
        let all: Recurrence = format!("weekly Sunday@00:00 {zone}").parse().unwrap();
        let halves = ["/2", "/2+1"].map(|weeks| {
            let text = format!("weekly Sunday@00:00{weeks} {zone}");
            let half: Recurrence = text.parse().unwrap();
            assert_eq!(half.to_string().parse(), Ok(half.clone()), "{half}");
            half
        });
        let mut now = at("2026-12-01T00:00:00Z");
        let mut turns = Vec::new();
        for _ in 0..12 {
            let next = all.next_after(now).unwrap();
            let is_of = halves.each_ref().map(|half| half.next_after(now) == Some(next));
            assert!(is_of[0] != is_of[1], "{next} {zone}");
            turns.push(is_of[0]);
            now = next;
        }
        assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
    }
    for wrong in ["/0", "/53", "/2+2", "/", "/2+", "/+1", "/-1", "/2/2"] {
        assert!(format!("weekly sun@12:00{wrong}").parse::<Recurrence>().is_err(), "{wrong}");
    }
}

#[test]
fn short_months_have_the_thirty_first_on_their_last_day() {
    assert_eq!(next("monthly 31@01:00", "2026-01-31T01:00:00Z"), "2026-02-28T01:00:00Z");
    assert_eq!(next("monthly 31@01:00", "2028-02-01T01:00:00Z"), "2028-02-29T01:00:00Z");
    // Cron skips them.
    assert_eq!(next("cron 0 1 31 * *", "2026-01-31T01:00:00Z"), "2026-03-31T01:00:00Z");
}

#[test]
fn daylight_saving_changes_are_followed() {
    // 2026-03-29 02:00 becomes 03:00 (01:00 UTC); 2026-10-25 03:00 becomes 02:00 (01:00 UTC).
    let daily = "daily 02:30 Europe/Berlin";
    assert_eq!(next(daily, "2026-03-28T12:00:00Z"), "2026-03-29T01:00:00Z");
    assert_eq!(next(daily, "2026-03-29T01:00:00Z"), "2026-03-30T00:30:00Z");
    assert_eq!(next(daily, "2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
    assert_eq!(next(daily, "2026-10-25T00:30:00Z"), "2026-10-26T01:30:00Z");
    let hourly = "cron 30 * * * * Europe/Berlin";
    assert_eq!(next(hourly, "2026-03-29T00:30:00Z"), "2026-03-29T01:30:00Z");
    assert_eq!(next(hourly, "2026-10-25T00:30:00Z"), "2026-10-25T01:30:00Z");
    // Samoa skipped a whole day.
    assert_eq!(next("daily 06:00 Pacific/Apia", "2011-12-29T16:00:00Z"), "2011-12-30T10:00:00Z");
}

#[test]
fn errors_name_the_cause_and_the_valid_form() {
    for (schedule, wrong, right) in [
        ("", "empty", "daily HH:MM"),
        ("dayly 12:00", "\"dayly\"", "daily HH:MM"),
        ("daily 24:00", "\"24:00\"", "23:59"),
        ("daily 1:5", "\"1:5\"", "HH:MM"),
        ("daily 13:00PM", "\"13:00PM\"", "11:59PM"),
        ("periodic 0", "\"0\"", "minutes from 1"),
        ("periodic soon", "\"soon\"", "minutes from 1"),
        ("weekly 03:00", "\"03:00\"", "sunday@03:00"),
        ("weekly foo@03:00", "\"foo\"", "Monday"),
        ("monthly 32@03:00", "\"32\"", "1 to 31"),
        ("cron * * *", "3 fields", "minute hour day-of-month month day-of-week"),
        ("cron 0 0 0 1 *", "\"0\" cannot be the day of the month", "1 to 31"),
        ("cron 0 5-2 * * *", "\"5-2\"", "ranges 1-5"),
        ("cron */0 * * * *", "\"*/0\"", "steps"),
        ("cron 0 0 31 2 *", "never comes", "no date"),
        ("cron @reboot", "\"@reboot\"", "@daily"),
        ("calendar *-*-* 00:00:30", "\"00:00:30\"", "seconds"),
        ("calendar Fri..Mon", "\"Fri..Mon\"", "Mon..Fri"),
        ("calendar 99-*-* 00:00", "\"99\"", "1970"),
        ("calendar 02-30", "never comes", "no date"),
        ("calendar Mon 2026-02~03", "never comes", "no date"),
        ("daily 12:00 Europe/Atlantis", "\"Europe/Atlantis\"", "Europe/Berlin"),
    ] {
        let error = schedule.parse::<Recurrence>().unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains(right), "{schedule}: {error}");
    }
}

#[test]
fn json_is_the_text() {
    let schedule: Recurrence = "weekly  thu@10:13pm  europe/berlin".parse().unwrap();
    let json = serde_json::to_string(&schedule).unwrap();
    assert_eq!(json, "\"weekly Thursday@22:13 Europe/Berlin\"");
    assert_eq!(serde_json::from_str::<Recurrence>(&json).unwrap(), schedule);
    assert!(serde_json::from_str::<Recurrence>("\"weekly\"").is_err());
}

/// Schedule as lists of numbers for the model, and its text.
#[derive(Clone, Debug)]
struct Spec {
    text: String,
    minutes: Vec<i8>,
    hours: Vec<i8>,
    days: Vec<i8>,
    months: Vec<i8>,
    /// Sunday is 0.
    weekdays: Vec<i8>,
    either: bool,
}

impl Spec {
    fn has(&self, local: DateTime) -> bool {
        let day = self.days.contains(&local.day());
        let weekday = self.weekdays.contains(&local.weekday().to_sunday_zero_offset());
        self.minutes.contains(&local.minute())
            && self.hours.contains(&local.hour())
            && self.months.contains(&local.month())
            && if self.either { day || weekday } else { day && weekday }
    }

    /// Examines every minute from `begin` to `end` and its local time.
    fn model(&self, zone: &TimeZone, begin: Timestamp, end: Timestamp) -> Vec<Timestamp> {
        let by_clock = self.hours.len() < 24;
        let minute = jiff::Span::new().minutes(1);
        let mut found = Vec::new();
        // Starts a day earlier, to know which local times have already occurred.
        let mut at_s = begin.as_second() - 86_400;
        let mut shown = zone.to_datetime(Timestamp::from_second(at_s - 60).unwrap());
        while at_s <= end.as_second() {
            let at = Timestamp::from_second(at_s).unwrap();
            let local = zone.to_datetime(at);
            let fires = if by_clock {
                let mut any = false;
                while shown < local {
                    shown += minute;
                    any |= self.has(shown);
                }
                any
            } else {
                self.has(local)
            };
            if fires && at > begin {
                found.push(at);
            }
            at_s += 60;
        }
        found
    }
}

fn list(numbers: &[i8], all: usize) -> String {
    if numbers.len() == all {
        return "*".into();
    }
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn some_of(range: std::ops::RangeInclusive<i8>, any_weight: u32) -> impl Strategy<Value = Vec<i8>> {
    let all: Vec<i8> = range.collect();
    let most = all.len().min(5);
    prop_oneof![
        any_weight => Just(all.clone()),
        1 => prop::sample::subsequence(all, 1..=most),
    ]
}

fn specs() -> impl Strategy<Value = Spec> {
    let parts =
        (some_of(0..=59, 0), some_of(0..=23, 1), some_of(1..=31, 3), some_of(1..=12, 4), some_of(0..=6, 3));
    (parts, any::<bool>()).prop_map(|((minutes, hours, days, months, weekdays), cron)| {
        let text = if cron {
            let [m, h, d, mo, w] = [
                list(&minutes, 60),
                list(&hours, 24),
                list(&days, 31),
                list(&months, 12),
                list(&weekdays, 7),
            ];
            format!("cron {m} {h} {d} {mo} {w}")
        } else {
            let names = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
            let weekdays: Vec<&str> = weekdays.iter().map(|day| names[*day as usize]).collect();
            let (d, mo) = (list(&days, 31), list(&months, 12));
            format!("calendar {} *-{mo}-{d} {}:{}", weekdays.join(","), list(&hours, 24), list(&minutes, 60))
        };
        let either = cron && days.len() < 31 && weekdays.len() < 7;
        Spec { text, minutes, hours, days, months, weekdays, either }
    })
}

const ZONES: [&str; 9] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "America/Sao_Paulo",
    "Asia/Kathmandu",
    "Antarctica/Troll",
    "Pacific/Apia",
];

fn all_of(schedule: &Recurrence, begin: Timestamp, end: Timestamp) -> Vec<Timestamp> {
    let mut found = Vec::new();
    let mut next = schedule.next_after(begin);
    while let Some(at) = next.filter(|at| *at <= end) {
        found.push(at);
        next = schedule.next_after(at);
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Compares with every minute of a year and a half, with its clock changes.
    #[test]
    fn next_run_matches_a_minute_by_minute_search(
        spec in specs(),
        zone in prop::sample::select(&ZONES[..]),
        begin_day in 14_000_i64..22_000,
        begin_s in 0_i64..86_400,
    ) {
        let schedule: Recurrence = match format!("{} {zone}", spec.text).parse() {
            Ok(schedule) => schedule,
            Err(ScheduleError::Never { .. }) => return Ok(()),
            Err(error) => panic!("{error}"),
        };
        let begin = Timestamp::from_second(begin_day * 86_400 + begin_s).unwrap();
        let begin_minute = Timestamp::from_second(begin.as_second().div_euclid(60) * 60).unwrap();
        let end = Timestamp::from_second(begin.as_second() + 550 * 86_400).unwrap();
        let model = spec.model(schedule.zone.time_zone(), begin_minute, end);
        let found = all_of(&schedule, begin_minute, end);
        prop_assert_eq!(&found, &model, "{}", schedule);
        // Searches from arbitrary starts, and backwards.
        prop_assert_eq!(schedule.next_after(begin), found.first().copied().or_else(|| schedule.next_after(end)));
        prop_assert_eq!(schedule.last_until(begin_minute, end), found.last().copied());
    }

    #[test]
    fn texts_round_trip(spec in specs(), zone in prop::sample::select(&ZONES[..])) {
        if let Ok(schedule) = format!("{} {zone}", spec.text).parse::<Recurrence>() {
            let again: Recurrence = schedule.to_string().parse().unwrap();
            prop_assert_eq!(again, schedule);
        }
    }

    #[test]
    fn no_text_does_harm(kind in prop::sample::select(&["", "daily ", "weekly ", "monthly ", "periodic ", "cron ", "calendar "][..]),
        text in "[-+0-9*/,.:~@ A-Za-zäé]{0,24}") {
        if let Ok(schedule) = format!("{kind}{text}").parse::<Recurrence>() {
            let begin = date(2026, 3, 1).to_zoned(TimeZone::UTC).unwrap().timestamp();
            if let Some(next) = schedule.next_after(begin) {
                prop_assert!(next > begin);
            }
            prop_assert_eq!(schedule.to_string().parse::<Recurrence>(), Ok(schedule));
        }
    }

    #[test]
    fn any_instant_will_do(second in -377_705_000_000_i64..253_402_000_000, text in prop::sample::select(&[
        "periodic 7", "daily 02:30 Europe/Berlin", "cron 0 0 29 2 1", "calendar 2199-12-31"][..])) {
        let schedule: Recurrence = text.parse().unwrap();
        let after = Timestamp::from_second(second).unwrap();
        if let Some(next) = schedule.next_after(after) {
            prop_assert!(next > after);
        }
    }
}

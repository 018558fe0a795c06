//! Tests of the configuration.

use super::*;
use clap::Parser;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/x.toml"))
}

#[test]
fn unknown_key_is_named_with_its_line() {
    let error = parse("full_every = 3\n\nuplod_concurrency = 4\n").unwrap_err().to_string();
    assert!(error.starts_with("configuration /etc/x.toml, line 3: "), "{error}");
    assert!(error.contains("uplod_concurrency"), "{error}");
    assert!(!error.contains('\n'));
}

#[test]
fn command_line_overrides_file_and_file_overrides_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(
        &path,
        "data_dir = \"/a\"\nfull_every = 3\nlog_level = \"warn\"\nnbd_listen = [\"tcp://127.0.0.1:1\"]\n",
    )
    .unwrap();
    let path_text = path.to_str().unwrap();
    let cli = Cli::parse_from([
        "blockd",
        "--config",
        path_text,
        "--data-dir",
        "/b",
        "--nbd-listen",
        "tcp://[::1]:2",
    ]);
    let config = Config::load(&cli).unwrap();
    assert_eq!(config.data_dir, Path::new("/b"));
    assert_eq!(config.full_every, 3);
    assert_eq!(config.upload_concurrency, 32);
    assert_eq!(config.nbd_listen, vec![NbdAddress::Tcp("[::1]:2".parse().unwrap())]);
}

#[test]
fn named_file_that_is_missing_is_refused() {
    let cli = Cli { config: Some("/nonexistent/blockd.toml".into()), ..Cli::default() };
    let error = Config::load(&cli).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/blockd.toml"), "{error}");
}

#[test]
fn value_out_of_range_is_refused_by_name() {
    let config = Config { full_every: 0, ..Config::default() };
    assert_eq!(config.check().unwrap_err().to_string(), "full_every is 0, but must be 1 to 1000");
    let config = Config { cpu_threads: 2000, ..Config::default() };
    let wanted = "cpu_threads is 2000, but must be 0 (one per core), or 1 to 1024";
    assert_eq!(config.check().unwrap_err().to_string(), wanted);
}

#[test]
fn invalid_log_level_is_refused() {
    let config = Config { log_level: "bogus".into(), ..Config::default() };
    let error = config.check().unwrap_err().to_string();
    assert!(error.starts_with("log_level: ") && error.contains("bogus"), "{error}");
}

#[test]
fn serialized_config_parses_back() {
    let config = Config { nbd_listen: vec!["unix:///run/x.sock".parse().unwrap()], ..Config::default() };
    assert_eq!(parse(&config.to_toml()).unwrap(), config);
}

#[test]
fn daily_limits_are_parsed_and_checked() {
    let text = "limit_upload = \"20M@08:00-18:00,100MiB\"\nlimit_time_zone = \"Europe/Berlin\"\n";
    let config = parse(text).unwrap();
    config.check().unwrap();
    assert_eq!(parse(&config.to_toml()).unwrap(), config);
    assert!(parse("limit_upload = \"20M@8-18\"").unwrap_err().to_string().contains("08:00-18:00"));
    for (text, word) in [("limit_download = \"7\"", "1024"), ("limit_time_zone = \"X/Y\"", "X/Y")] {
        let error = parse(text).unwrap().check().unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn plaintext_to_other_hosts_needs_explicit_consent() {
    let with = |text: &str| {
        let config = parse(text).unwrap();
        config.check().map(|()| config.tls_mode()).map_err(|error| error.to_string())
    };
    let certificate = "nbd_tls_certificate = \"/c\"\nnbd_tls_key = \"/k\"\n";
    let open = "nbd_listen = [\"tcp://127.0.0.1:1\", \"tcp://0.0.0.0:1\"]\n";
    let error = with(open).unwrap_err();
    assert!(error.contains("0.0.0.0:1") && error.contains("nbd_allow_plaintext"), "{error}");
    assert_eq!(with(&format!("{open}nbd_allow_plaintext = true")), Ok(NbdTls::Off));
    assert_eq!(with(&format!("{open}{certificate}")), Ok(NbdTls::Require), "a certificate implies TLS");
    let allow = format!("{open}{certificate}nbd_tls = \"allow\"\n");
    assert!(with(&allow).unwrap_err().contains("nbd_allow_plaintext"), "clients may connect in clear text");
    assert_eq!(with(&format!("{allow}nbd_allow_plaintext = true")), Ok(NbdTls::Allow));
    for address in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert_eq!(with(&format!("nbd_listen = [\"tcp://{address}\"]")), Ok(NbdTls::Off));
    }
    for (text, named) in [
        ("nbd_tls = \"require\"", "nbd_tls_certificate"),
        ("nbd_tls_certificate = \"/c\"", "nbd_tls_key"),
        ("nbd_tls_key = \"/k\"", "nbd_tls_certificate"),
        ("nbd_tls_client_ca = \"/ca\"", "nbd_tls_client_ca"),
        ("nbd_tls_client_crl = \"/crl\"", "nbd_tls_client_ca"),
        ("[nbd_access]\nvol = [\"alice\"]", "nbd_tls_client_ca"),
        ("nbd_idle_timeout_ms = 5", "nbd_idle_timeout_ms"),
    ] {
        let error = with(text).unwrap_err();
        assert!(error.starts_with(&format!("{named} is ")), "{text}: {error}");
    }
    let full = format!("{certificate}nbd_tls_client_ca = \"/ca\"\n[nbd_access]\n\"db-*\" = [\"alice\"]\n");
    assert_eq!(with(&full), Ok(NbdTls::Require));
    let config = parse(&full).unwrap();
    assert_eq!(parse(&config.to_toml()).unwrap(), config, "serialized config parses back");
}

#[test]
fn invalid_address_error_names_the_valid_form() {
    for bad in ["127.0.0.1:10809", "tcp://localhost", "unix://relative", "http://x", ""] {
        let error = bad.parse::<NbdAddress>().unwrap_err();
        assert!(error.contains("tcp://"), "{error}");
    }
}

fn checked(text: &str) -> Result<Config, String> {
    let config = parse(text).map_err(|error| error.to_string())?;
    config.check().map_err(|error| error.to_string())?;
    Ok(config)
}

fn hook(rest: &str) -> String {
    format!("[[webhook]]\nname = \"ops\"\n{rest}\n")
}

#[test]
fn serialized_webhook_parses_back_and_display_hides_secrets() {
    let text = hook(
        "url = \"https://hooks.example:8443/T0/planted\"\nkinds = [\"*-failed\"]\nmin_severity = \"error\"",
    );
    let config = checked(&(text.clone() + &text.replace("ops", "other"))).unwrap();
    assert_eq!(checked(&config.to_toml()).unwrap(), config);
    let printed = config.to_shown_toml();
    assert!(
        printed.contains("\"https://hooks.example:8443/...\"") && !printed.contains("planted"),
        "{printed}"
    );
    checked(&printed).unwrap();
    let query = checked(&hook("url = \"https://hooks.example/?token=planted#planted\"")).unwrap();
    assert!(!query.to_shown_toml().contains("planted"), "{}", query.to_shown_toml());
    let shown = format!("{config:?}");
    assert!(shown.contains("https://hooks.example:8443/…") && !shown.contains("planted"), "{shown}");
}

#[test]
fn invalid_webhook_is_refused_without_showing_its_url() {
    let https = "url = \"https://h.example/planted\"\n";
    for (text, word) in [
        (hook("url = \"planted\""), "https://HOST/PATH"),
        (hook("url = \"ftp://h/planted\""), "https://HOST/PATH"),
        (hook("url = \"https://u:planted@h/\""), "`secret`"),
        (hook("url = \"http://h.example/planted\""), "http://h.example without TLS"),
        (hook(&format!("{https}kinds = [\"backup-fialed\"]")), "`backup-fialed`"),
        (hook(&format!("{https}secret = \"s\"")), "file:"),
        (hook(&format!("{https}timeout_ms = 5")), "timeout_ms is 5"),
        (hook(https) + &hook(https), "another webhook has the same name"),
        (hook(https).replace("ops", "o p"), "only A-Z a-z 0-9"),
        (
            hook(https).replace("ops", "1"),
            "webhook.name: the name \"1\" looks like an id: ids are all digits",
        ),
        (
            hook(https).replace("ops", ".a"),
            "webhook.name: the name \".a\" must begin with a letter or a digit",
        ),
        (hook(https).repeat(17), "at most 16"),
    ] {
        let error = checked(&text).unwrap_err();
        assert!(error.contains(word) && !error.contains("planted"), "{text}: {error}");
    }
    for url in ["http://127.0.0.1:1/", "http://[::1]/x", "http://localhost/", "http://[::ffff:127.0.0.1]/"] {
        checked(&hook(&format!("url = \"{url}\""))).unwrap();
    }
    checked(&hook("url = \"http://h.example/\"\nallow_http = true")).unwrap();
}

#[test]
fn probe_of_root_or_without_a_command_is_refused() {
    let table = |keys: &str| checked(&format!("[drill_probes.db]\n{keys}"));
    let probe = &table("command = \"true\"").unwrap().drill_probes[&"db".parse().unwrap()];
    assert_eq!((probe.user.as_str(), probe.access, probe.timeout_s), ("nobody", ProbeAccess::Mount, 600));
    assert_eq!(probe.memory_limit_bytes, 4 << 30);
    for (keys, named) in [
        ("command = \" \"", "the command is empty"),
        ("command = \"true\"\nuser = \"root\"", "the user must not be root"),
        ("command = \"true\"\ntimeout_s = 0", "timeout_s"),
        ("command = \"true\"\nmemory_limit_bytes = 4096", "memory_limit_bytes"),
        ("command = \"true\"\naccess = \"all\"", "all"),
        ("user = \"postgres\"", "command"),
    ] {
        let error = table(keys).unwrap_err();
        assert!(error.contains(named), "{keys}: {error}");
    }
}

#[test]
fn example_price_tables_are_valid() {
    let config = checked(include_str!("../../../../examples/prices.toml")).unwrap();
    let names: Vec<&str> = config.prices.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["azure", "b2", "gcs", "s3"]);
    assert_eq!(config.prices.values().last(), Some(&blockd_api::costs::Prices::s3_standard()));
    for (wrong, word) in [
        ("get_per_1000 = 0.4", "string"),
        ("get_per_1000 = \"0.0000004\"", "decimal places"),
        ("get_per_1000 = \"-1\"", "negative"),
        ("get_for_1000 = \"1\"", "get_for_1000"),
    ] {
        let error = checked(&format!("[prices.s3]\n{wrong}\n")).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
}

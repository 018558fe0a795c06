//! The Debian package: contents, installation, upgrade, removal and purge.

use crate::harness::{
    Bed, files_below,
    package::{System, make_package, missing_tool},
    process::{Process, both, die_with_parent, program, repository, shim},
    replay::filesystem::with_private_mounts,
    skip,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
};

/// Returns true, and prints it, if a test lacks a requirement.
fn is_skipped(name: &str, missing: Option<String>) -> bool {
    missing.inspect(|what| skip(name, what)).is_some()
}

fn cannot_package() -> Option<String> {
    missing_tool(&["dpkg-deb", "dpkg-shlibdeps", "strip", "python3"])
        .map(|tool| format!("{tool}: install the Debian package dpkg-dev"))
}

/// Unpacks a package.
fn unpack(package: &Path, to: &Path) {
    let output = Command::new("dpkg-deb").arg("--raw-extract").args([package, to]).output().unwrap();
    assert!(output.status.success(), "{}", both(&output));
}

fn unzipped(path: &Path) -> String {
    let output = Command::new("gzip").args(["--decompress", "--stdout"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}: {}", path.display(), both(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn package_has_documented_contents() {
    if is_skipped("package_has_documented_contents", cannot_package()) {
        return;
    }
    let bed = Bed::on_disk();
    let package = make_package(&bed.path("one"), "0.1.0");
    let again = make_package(&bed.path("two"), "0.1.0");
    assert!(fs::read(&package).unwrap() == fs::read(&again).unwrap(), "the build is not reproducible");

    let list = Command::new("dpkg-deb").arg("--contents").arg(&package).output().unwrap();
    for line in String::from_utf8(list.stdout).unwrap().lines() {
        assert!(line.contains(" root/root "), "{line}");
    }
    let tree = bed.path("tree");
    unpack(&package, &tree);
    let files = files_below(&tree);
    let found: BTreeSet<&str> =
        files.iter().map(|path| path.strip_prefix(&tree).unwrap().to_str().unwrap()).collect();
    for wanted in [
        "DEBIAN/md5sums",
        "etc/blockd/blockd.toml",
        "lib/systemd/system/blockd.service",
        "lib/systemd/system/blockd.socket",
        "lib/systemd/system/blockd-attach@.service",
        "lib/systemd/system/blockd-browse@.service",
        "usr/bin/blockctl",
        "usr/bin/blockd",
        "usr/lib/sysusers.d/blockd.conf",
        "usr/share/doc/blockd/changelog.gz",
        "usr/share/doc/blockd/copyright",
        "usr/share/doc/blockd/cloud/FORMAT.md.gz",
        "usr/share/doc/blockd/examples/monitoring/blockd.rules.yml",
        "usr/share/doc/blockd/examples/objects.yaml",
        "usr/share/doc/blockd/examples/systemd/blockd-rule-users.conf",
        "usr/share/doc/blockd/third-party-licences.txt.gz",
        "usr/share/man/man1/blockctl-cloudsnap-schedules-create.1.gz",
        "usr/share/man/man1/blockctl.1.gz",
        "usr/share/man/man8/blockd.8.gz",
    ] {
        assert!(found.contains(wanted), "no {wanted} in {found:#?}");
    }
    // The manual pages are those of these programs.
    assert!(unzipped(&tree.join("usr/share/man/man1/blockctl-volume-check.1.gz")).contains("volume"));
    assert!(unzipped(&tree.join("usr/share/man/man8/blockd.8.gz")).contains("full_every"));
    // The script of blockctl asks the program for candidates.
    for (program, word, whole, function, text) in [
        ("blockctl", "res", "resize", "_clap_complete_blockctl", "BLOCKCTL_COMPLETE"),
        ("blockd", "--after", "--after-power-loss", "_blockd", "after-power-loss"),
    ] {
        for path in [
            format!("usr/share/zsh/vendor-completions/_{program}"),
            format!("usr/share/fish/vendor_completions.d/{program}.fish"),
        ] {
            assert!(fs::read_to_string(tree.join(&path)).unwrap().contains(text), "{path}");
        }
        let path = tree.join(format!("usr/share/bash-completion/completions/{program}"));
        let words = if program == "blockctl" { vec![program, "volume", word] } else { vec![program, word] };
        let complete = format!(
            "PATH={}:$PATH; source {}; COMP_TYPE=9; COMP_WORDS=({}); COMP_CWORD={}; {function} {program} {word} {}; echo \"${{COMPREPLY[*]}}\"",
            tree.join("usr/bin").display(),
            path.display(),
            words.join(" "),
            words.len() - 1,
            words[words.len() - 2],
        );
        let output = Command::new("bash").args(["--norc", "-c", &complete]).output().unwrap();
        let replies = both(&output);
        assert!(replies.split_whitespace().any(|reply| reply == whole), "{program}: {replies}");
    }
}

/// Returns the crates (`NAME-VERSION`) whose source paths a program contains, as in panic messages.
fn crates_named_in(program: &Path) -> BTreeSet<String> {
    let bytes = fs::read(program).unwrap();
    let mut found = BTreeSet::new();
    let before = b"/registry/src/";
    let mut at = 0;
    while let Some(next) = bytes[at..].windows(before.len()).position(|window| window == before) {
        at += next + before.len();
        let path: String = bytes[at..]
            .iter()
            .take(200)
            .take_while(|byte| byte.is_ascii_graphic())
            .map(|byte| *byte as char)
            .collect();
        let mut parts = path.split('/').skip(1);
        if let (Some(name), Some(_)) = (parts.next(), parts.next()) {
            found.insert(name.to_owned());
        }
    }
    found
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value:#}"))
}

#[test]
fn bill_of_materials_lists_compiled_dependencies() {
    if is_skipped("bill_of_materials_lists_compiled_dependencies", missing_tool(&["python3", "cargo"])) {
        return;
    }
    let output = Command::new(repository().join("tools/sbom")).output().unwrap();
    assert!(output.status.success(), "{}", both(&output));
    let bill: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((text(&bill, "bomFormat"), text(&bill, "specVersion")), ("CycloneDX", "1.5"));
    let components = bill["components"].as_array().unwrap();
    let by_ref: BTreeMap<&str, &Value> = components.iter().map(|one| (text(one, "bom-ref"), one)).collect();
    assert_eq!(by_ref.len(), components.len(), "a component is listed twice");

    // The programs are searched, not the output of the tool under test.
    let mut named = crates_named_in(&program("blockd"));
    named.extend(crates_named_in(&program("blockctl")));
    assert!(named.len() > 50, "the programs name few crates: {named:?}");
    let required: BTreeSet<String> = components
        .iter()
        .filter(|one| one["scope"] == "required")
        .map(|one| format!("{}-{}", text(one, "name"), text(one, "version")))
        .collect();
    let left_out: Vec<_> = named.difference(&required).collect();
    assert!(left_out.is_empty(), "compiled in, but not in the bill: {left_out:?}");

    let bytes = fs::read(program("blockd")).unwrap();
    for library in ["sqlite", "aws-lc", "zstd"] {
        let one = components.iter().find(|one| one["name"] == library);
        let version = text(one.unwrap_or_else(|| panic!("no {library}")), "version");
        assert!(text(one.unwrap(), "cpe").contains(version));
        if library == "sqlite" {
            assert!(bytes.windows(version.len()).any(|window| window == version.as_bytes()), "{version}");
        }
    }
    for member in fs::read_dir(repository().join("blockd")).unwrap() {
        let name = member.unwrap().file_name().into_string().unwrap();
        let name = if name == "daemon" { "blockd".to_owned() } else { format!("blockd-{name}") };
        assert!(components.iter().any(|one| one["name"] == name.as_str()), "no {name}");
    }

    let lock = fs::read_to_string(repository().join("Cargo.lock")).unwrap();
    for one in components.iter().filter(|one| !one["hashes"].is_null()) {
        let (name, version) = (text(one, "name"), text(one, "version"));
        let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
        let found = lock.split("[[package]]\n").find(|package| package.starts_with(&entry));
        let checksum = text(&one["hashes"][0], "content");
        assert!(found.unwrap().contains(&format!("checksum = \"{checksum}\"")), "{name}");
        assert!(one["licenses"][0]["expression"].is_string(), "{name} has no licence");
    }
    for dependency in bill["dependencies"].as_array().unwrap() {
        for other in dependency["dependsOn"].as_array().unwrap() {
            assert!(by_ref.contains_key(other.as_str().unwrap()), "{other} is no component");
        }
    }
}

#[test]
fn package_has_no_lintian_findings() {
    let missing = cannot_package().or_else(|| missing_tool(&["lintian"]));
    if is_skipped("package_has_no_lintian_findings", missing) {
        return;
    }
    let bed = Bed::on_disk();
    let package = make_package(&bed.path("out"), "0.1.0");
    let mut command = Command::new("lintian");
    command.args(["--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0"]);
    let output = command.arg(&package).output().unwrap();
    assert!(output.status.success(), "{}", both(&output));
}

/// Script that logs the calls of `systemctl`.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" >>/var/log/systemctl.log
"#;

/// A system that looks as if systemd runs, with a fake `systemctl` that logs its calls.
struct Host {
    system: System,
}

impl Host {
    fn new() -> Result<Self, String> {
        let system = System::over_this_one()?;
        fs::create_dir_all(system.path("/run/systemd/system")).unwrap();
        let systemctl = system.path("/usr/bin/systemctl");
        // Containers forbid packages to start services.
        let _ = fs::remove_file(system.path("/usr/sbin/policy-rc.d"));
        // A symbolic link may point out of the overlay.
        let _ = fs::remove_file(&systemctl);
        fs::write(&systemctl, SYSTEMCTL).unwrap();
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        Ok(Self { system })
    }

    /// Returns the calls of `systemctl` since the last call of this function.
    fn systemctl_calls(&self) -> Vec<String> {
        let log = self.system.path("/var/log/systemctl.log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(log);
        text.lines().filter(|line| !line.contains("daemon-reload")).map(str::to_owned).collect()
    }

    fn install(&self, package: &Path) -> String {
        fs::copy(package, self.system.path("/tmp/blockd.deb")).unwrap();
        self.system.must(&["dpkg", "--install", "/tmp/blockd.deb"])
    }

    fn status(&self) -> String {
        let output = self.system.run(&["dpkg-query", "--show", "--showformat=${db:Status-Status}", "blockd"]);
        if output.status.success() {
            String::from_utf8(output.stdout).unwrap()
        } else {
            "not-installed".into()
        }
    }

    fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(self.system.path(path)).is_ok()
    }

    /// Starts the daemon as its unit does and waits until it serves.
    fn start(&self) -> Process {
        let mut daemon = self.system.start_unit("blockd.service");
        daemon.wait_until("blockd to serve", || {
            self.system.run(&["blockctl", "volume", "list"]).status.success()
        });
        daemon
    }
}

fn stop(daemon: Process) {
    let status = daemon.end(Signal::TERM);
    assert!(status.success(), "{status}");
}

/// Runs a test in a mount namespace of its own, or prints why it is skipped.
fn with_host(name: &str, act: impl FnOnce(&Host, &Path) + Send) {
    let missing = cannot_package()
        .or_else(|| missing_tool(&["dpkg", "setpriv", "systemd-sysusers", "systemd-analyze", "flock"]))
        .or_else(|| (!rustix::process::geteuid().is_root()).then(|| "root, which may install".to_owned()));
    if is_skipped(name, missing) {
        return;
    }
    let act = || {
        let bed = Bed::on_disk();
        match Host::new() {
            Ok(host) if host.status() == "not-installed" => act(&host, bed.dir()),
            Ok(_) => skip(name, "a machine on which blockd is not installed"),
            Err(what) => skip(name, &what),
        }
    };
    if let Err(what) = with_private_mounts(act) {
        skip(name, &what);
    }
}

fn assert_units_are_valid(system: &System) {
    let units = ["blockd.service", "blockd.socket", "blockd-attach@.service", "blockd-browse@.service"]
        .map(|unit| format!("/lib/systemd/system/{unit}"));
    let mut verify = vec!["systemd-analyze", "verify", "--man=no"];
    verify.extend(units.iter().map(String::as_str));
    let findings = system.must(&verify);
    assert!(!findings.contains("blockd"), "{findings}");
    // The exposure level of 0 to 100: lower is safer.
    let security = ["systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager"];
    system.must(&[&security[..], &[units[0].as_str()]].concat());
}

/// Checks that an upgrade does not restart a daemon with an invalid configuration.
fn assert_invalid_configuration_keeps_the_daemon(host: &Host, package: &Path) {
    let system = &host.system;
    let config = system.path("/etc/blockd/blockd.toml");
    let good = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("full_evry = 3\n{good}")).unwrap();
    let output = host.install(package);
    assert!(output.contains("full_evry") && output.contains("systemctl restart blockd"), "{output}");
    assert_eq!(host.systemctl_calls(), Vec::<String>::new());
    fs::write(&config, &good).unwrap();
}

/// Checks that the package cannot be removed while a volume is in use.
fn assert_used_volume_prevents_removal(host: &Host) {
    let system = &host.system;
    let block = system.path("/sys/block/nbd3");
    fs::create_dir_all(&block).unwrap();
    fs::write(block.join("backend"), "blockd:2e4d4b67:1\n").unwrap();
    fs::write(block.join("pid"), "1\n").unwrap();
    system.must(&["mount", "-t", "tmpfs", "/dev/nbd3p1", "/mnt"]);
    let refused = system.run(&["dpkg", "--remove", "blockd"]);
    assert!(!refused.status.success() && both(&refused).contains("in use: /dev/nbd3;"), "{}", both(&refused));
    assert_eq!((host.status(), host.systemctl_calls()), ("installed".to_owned(), vec![]));
    system.must(&["umount", "/mnt"]);
}

#[test]
fn package_installs_upgrades_and_purges() {
    with_host("package_installs_upgrades_and_purges", |host, dir| {
        let system = &host.system;
        let [first, second] = ["0.1.0", "0.1.1"].map(|version| make_package(&dir.join("packages"), version));

        host.install(&first);
        assert_eq!(
            host.systemctl_calls(),
            Vec::<String>::new(),
            "the installation started or enabled a unit"
        );
        assert_eq!(host.status(), "installed");
        let account = system.must(&["getent", "passwd", "blockd"]);
        let uid: u32 = account.split(':').nth(2).unwrap().parse().unwrap();
        let data = fs::metadata(system.path("/var/lib/blockd")).unwrap();
        assert_eq!((data.uid(), data.mode() & 0o7777), (uid, 0o700));
        assert_units_are_valid(system);

        let daemon = host.start();
        system.must(&["blockctl", "volume", "create", "kept", "--size", "64MiB"]);
        fs::create_dir_all(system.path("/srv/backups")).unwrap();
        system.must(&["chown", "blockd:", "/srv/backups"]);
        let credential = ["blockctl", "credentials", "create", "here", "--provider", "local"];
        let location = ["--path", "/srv/backups", "--encryption-passphrase", "planted"];
        system.must(&[&credential[..], &location].concat());
        system.must(&["blockctl", "cloudsnap", "backup", "kept", "--wait"]);

        host.install(&second);
        assert_eq!(
            host.systemctl_calls(),
            ["try-restart blockd.service"],
            "an upgrade restarts a running daemon only"
        );
        stop(daemon);
        let daemon = host.start();
        assert!(system.must(&["blockctl", "volume", "list"]).contains("kept"));

        assert_invalid_configuration_keeps_the_daemon(host, &second);
        assert_used_volume_prevents_removal(host);
        system.must(&["dpkg", "--remove", "blockd"]);
        assert_eq!(
            host.systemctl_calls(),
            ["stop blockd-attach@*.service blockd-browse@*.service", "stop blockd.socket blockd.service"]
        );
        stop(daemon);
        assert_eq!(host.status(), "config-files");
        assert!(!host.exists("/usr/bin/blockd") && host.exists("/etc/blockd/blockd.toml"));

        let output = system.must(&["dpkg", "--purge", "blockd"]);
        assert!(
            output.contains("left in /var/lib/blockd") && output.contains("/etc/blockd/purge-data"),
            "{output}"
        );
        assert!(!host.exists("/etc/blockd"));
        for kept in ["blockd.db", "secret.key", "volumes"] {
            assert!(host.exists(&format!("/var/lib/blockd/{kept}")), "{kept} was deleted");
        }

        host.install(&second);
        let daemon = host.start();
        assert!(system.must(&["blockctl", "volume", "list"]).contains("kept"), "the volumes are lost");
        assert!(system.must(&["blockctl", "cloudsnap", "list"]).contains("kept"), "the secrets are lost");
        fs::write(system.path("/etc/blockd/purge-data"), "").unwrap();
        let output = system.must(&["dpkg", "--purge", "blockd"]);
        assert!(output.contains("/var/lib/blockd is left, because a blockd runs on it"), "{output}");
        assert!(host.exists("/var/lib/blockd/blockd.db") && host.exists("/etc/blockd/purge-data"));
        stop(daemon);

        host.install(&second);
        system.must(&["dpkg", "--purge", "blockd"]);
        assert!(!host.exists("/var/lib/blockd") && !host.exists("/etc/blockd"), "purge-data is ignored");
        assert_eq!(host.status(), "not-installed");
    });
}

#[test]
fn package_works_under_systemd() {
    let name = "package_works_under_systemd";
    let missing = cannot_package()
        .or_else(|| missing_tool(&["dpkg", "unshare", "chroot", "findmnt", "nbdcopy", "jq", "pgrep"]))
        .or_else(|| (!Path::new("/lib/systemd/systemd").exists()).then(|| "systemd".to_owned()))
        .or_else(|| (!rustix::process::geteuid().is_root()).then(|| "root, which may install".to_owned()));
    if is_skipped(name, missing) {
        return;
    }
    let bed = Bed::on_disk();
    for (version, name) in [("0.1.0", "one.deb"), ("0.1.1", "two.deb")] {
        fs::rename(make_package(&bed.path("made"), version), bed.path(name)).unwrap();
    }
    let dir = bed.path("host");
    fs::create_dir_all(dir.join("system")).unwrap();
    let mut command = Command::new(shim("systemd_host.sh"));
    command.arg(&dir).arg(shim("package_steps.sh")).args([bed.path("one.deb"), bed.path("two.deb")]);
    command.stdin(Stdio::null());
    let output = die_with_parent(&mut command).output().unwrap();
    let Ok(steps) = fs::read_to_string(dir.join("steps.log")) else {
        return skip(name, &format!("a bootable system: {}", both(&output)));
    };
    let log = || fs::read_to_string(dir.join("blockd.log")).unwrap_or_default();
    assert!(steps.ends_with("ALL STEPS DONE\n"), "{}\n{steps}\n--- log of blockd:\n{}", both(&output), log());
}

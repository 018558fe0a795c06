//! Access to files of snapshots without a mount.

use super::*;

#[test]
fn files_are_listed_and_compared_without_a_mount() {
    let world = world();
    let ctl = world.ctl();
    let first = ctl.done_cloudsnaps().remove(0);
    let catalog = ctl.json(&["cloudsnap", "catalog", "--snap", &first]);
    let paths: Vec<&str> =
        catalog["items"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert!(paths.contains(&"/deep/er/file 7") && paths.contains(&"/control%0Aname%1B[31m"));
    let top = ctl.json(&["cloudsnap", "catalog", "--snap", &first, "--path", "deep", "--depth", "1"]);
    assert_eq!(top["items"].as_array().unwrap().len(), 2);
    let cat = ctl.run(&["cloudsnap", "cat", "--snap", &first, "/deep/er/file 3"]);
    assert_eq!(cat.stdout, "content 3\n".repeat(3));
    ctl.fails(&["cloudsnap", "catalog", "--snap", &first, "--path", "/nothing"], 4);

    fs::write(world.source.join("deep/new"), "x").unwrap();
    fs::write(world.source.join("deep/er/file 3"), "changed").unwrap();
    fs::remove_file(world.source.join("link")).unwrap();
    make_image(&world.source, &world.image);
    process::must_run("nbdcopy", &[world.image.to_str().unwrap(), &world.daemon.uri("vol")]);
    let second = ctl.backup("vol");
    let diff = ctl.json(&["cloudsnap", "diff", &first, second.snap(), "--files"]);
    let changes: Vec<String> = diff["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| format!("{} {}", change["change"].as_str().unwrap(), change["path"].as_str().unwrap()))
        .collect();
    assert_eq!(changes, ["changed /deep/er/file 3", "added /deep/new", "removed /link"]);
}

#[test]
fn files_are_copied_out_without_a_mount() {
    let world = world();
    let ctl = world.ctl();
    let first = ctl.done_cloudsnaps().remove(0);
    let out = world.bed.path("out");
    ctl.json(&["cloudsnap", "cp", "--snap", &first, "/", out.to_str().unwrap()]);
    let plain = |tree: Vec<(PathBuf, u32, Vec<u8>)>| -> Vec<_> {
        // Copies have no set-user-ID and set-group-ID bits.
        tree.into_iter().map(|(path, mode, content)| (path, mode & !0o6000, content)).collect()
    };
    assert!(plain(tree(&out)) == plain(tree(&world.source)));
    assert!(fs::metadata(out.join("sparse")).unwrap().blocks() * 512 < MIB);
    let (code, _) =
        ctl.document(&["cloudsnap", "cp", "--snap", &first, "/noise", out.join("noise").to_str().unwrap()]);
    assert_ne!(code, 0, "an existing file was replaced");
    let names = ["one name", "another name"].map(|name| fs::metadata(out.join(name)).unwrap());
    assert!(names[0].ino() == names[1].ino() && names[0].nlink() == 2, "hard links differ");
    let time = |dir: &Path| fs::symlink_metadata(dir.join("link")).unwrap().mtime();
    assert_eq!(time(&out), time(&world.source));
    // A second copy adds the missing files.
    fs::remove_file(out.join("noise")).unwrap();
    fs::write(out.join("deep/er/file 7"), "mine").unwrap();
    let into = out.to_str().unwrap();
    let entries = ["/noise", "/deep", "/link"];
    let copy = |flag: &str| {
        let args = ["cloudsnap", "cp", "--snap", &first, flag].into_iter().chain(entries).chain([into]);
        ctl.json(&args.collect::<Vec<_>>())
    };
    let copied = copy("--skip-existing");
    assert_eq!((&copied["files"], &copied["skipped"]), (&1.into(), &301.into()));
    assert!(same_file(&out.join("noise"), &world.source.join("noise")));
    assert_eq!(fs::read(out.join("deep/er/file 7")).unwrap(), b"mine");
    copy("--overwrite");
    assert!(plain(tree(&out)) == plain(tree(&world.source)));
    // `--escaped` takes paths as the catalog shows them.
    let odd = "/control%0Aname%1B[31m";
    assert_eq!(ctl.run(&["cloudsnap", "cat", "--snap", &first, "--escaped", odd]).stdout, "x");
    ctl.json(&[
        "cloudsnap",
        "cp",
        "--escaped",
        "--snap",
        &first,
        odd,
        world.bed.path("odd").to_str().unwrap(),
    ]);
    assert_eq!(fs::read(world.bed.path("odd")).unwrap(), b"x");
}

/// The file is too large to be read in full: only its data may be read.
#[test]
fn holes_are_copied_out_without_being_read() {
    const HUGE: u64 = 3 << 40;
    let bed = Bed::new();
    let (source, image, out) = (bed.path("source"), bed.path("image"), bed.path("out"));
    fs::create_dir_all(&source).unwrap();
    let noise: Vec<u8> = (0..MIB).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1).collect();
    let huge = File::create(source.join("huge")).unwrap();
    huge.set_len(HUGE).unwrap();
    huge.write_all_at(b"begin", 0).unwrap();
    huge.write_all_at(&noise, HUGE / 2).unwrap();
    make_image(&source, &image);
    let store = bed.store("store");
    let daemon = bed.daemon("one").config("log_level = \"debug\"").start_with_volume(&store, None, "64MiB");
    let ctl = daemon.ctl();
    process::must_run("nbdcopy", &[image.to_str().unwrap(), &daemon.uri("vol")]);
    let snap = ctl.backup("vol").snap().to_owned();

    ctl.json(&["cloudsnap", "cp", "--snap", &snap, "/huge", out.to_str().unwrap()]);
    let printed = bed.path("printed");
    let mut cat = clean(process::program("blockctl"));
    cat.env("BLOCKD_SOCKET", daemon.socket()).args(["cloudsnap", "cat", "--snap", &snap, "/huge"]);
    let status = process::die_with_parent(cat.stdout(File::create(&printed).unwrap())).status().unwrap();
    assert!(status.success(), "{status}");
    for copy in [out, printed] {
        let meta = fs::metadata(&copy).unwrap();
        assert!(meta.len() == HUGE && meta.blocks() * 512 < 3 * MIB, "{} {}", meta.len(), meta.blocks());
        let file = File::open(&copy).unwrap();
        let mut found = vec![0xee; noise.len() + 4096];
        file.read_exact_at(&mut found, HUGE / 2).unwrap();
        assert!(found[..noise.len()] == noise && found[noise.len()..].iter().all(|byte| *byte == 0));
        file.read_exact_at(&mut found[..8], 0).unwrap();
        assert_eq!(&found[..8], b"begin\0\0\0");
    }
    let log = daemon.log();
    let requests =
        log.lines().filter(|line| line.contains("/v1/cloudsnaps/file") && line.contains("answered"));
    let requests = requests.count();
    assert!((6..20).contains(&requests), "{requests} requests");
}

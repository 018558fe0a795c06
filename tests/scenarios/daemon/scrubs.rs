//! Scrubs: damage of layer files is found, reported, repaired from backups, and never served.

use super::{drills::ext4, *};
use blockd_api::{
    events::Severity,
    tasks::{StartScrub, TaskKind},
    volumes::CloneVolume,
};
use blockd_catalog::ScrubRow;
use std::os::unix::fs::FileExt;

/// Flips a bit of a block in each layer file that has data there; returns the number of files.
fn damage_layers(volume: &Volume, block: u64) -> usize {
    let entries = fs::read_dir(volume.dir()).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|end| end == "data"));
    let flipped = files.filter(|path| {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, block * BLOCK + 99).unwrap();
        byte[0] != 0 && file.write_at(&[byte[0] ^ 8], block * BLOCK + 99).unwrap() == 1
    });
    flipped.count()
}

fn can_read(volume: &Volume, block: u64) -> bool {
    volume.read(block * BLOCK, &mut [0; BLOCK as usize]).is_ok()
}

impl Host {
    async fn backup_of_snapshot(&self, snapshot: &str) -> Task {
        let snapshot = Some(snapshot.parse().unwrap());
        self.run_backup(&StartBackup { snapshot, ..backup_of("data") }).await
    }

    async fn scrub(&self, request: StartScrub) -> Task {
        self.wait(self.call(START_SCRUB, &request).await.task_id).await
    }

    async fn damage_problems(&self) -> Vec<String> {
        let problems = self.call(GET_STATUS, &()).await.problems.into_iter();
        problems.filter(|problem| problem.kind == "volume-damage").map(|problem| problem.cause).collect()
    }
}

fn scrub_of(volume: &str, repair: bool) -> StartScrub {
    StartScrub { volume: Some(volume.parse().unwrap()), repair, ..StartScrub::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bit_is_found_reported_and_repaired() {
    let mut host = Host::new().await;
    let (_, volume, model) = host.one_backup().await;
    let task = host.scrub(scrub_of("data", false)).await;
    assert_eq!(task.state.to_string(), "Scrub-Done", "{task:?}");
    let read = task.findings.unwrap().block_bytes;
    assert!(read >= 1 << 20, "{read}");
    assert!(host.inspect_volume("data").await.last_scrub_at.is_some());
    assert_eq!((task.total_bytes, task.processed_bytes, task.credential_name), (read, read, None));

    // Blocks of different fetches.
    for block in [40, 41, 200] {
        assert_eq!(damage_layers(&volume, block), 1, "block {block}");
    }
    let task = host.scrub(StartScrub::default()).await;
    assert_eq!(task.state.to_string(), "Scrub-Failed");
    assert_eq!(task.error.unwrap().hint.as_deref(), Some("blockctl volume scrub --repair --wait"));
    let findings = task.findings.unwrap();
    assert_eq!((findings.damage_total, findings.repaired_bytes), (2, 0));
    assert_eq!(findings.damage[0].offset_bytes, 40 * BLOCK);
    assert!(findings.damage[0].object.contains("volume data"), "{findings:?}");
    assert!(findings.damage[0].cause.starts_with("8192 bytes differ from their checksum"), "{findings:?}");
    assert_eq!(host.inspect_volume("data").await.damaged_bytes, 3 * BLOCK);
    let events = host.events_of("volume-damaged").await;
    assert_eq!((events.len(), events[0].severity, events[0].credential_id), (1, Severity::Error, None));
    assert!(events[0].message.contains("12288 bytes of volume data"), "{events:?}");
    assert_eq!(host.damage_problems().await.len(), 1);
    let metrics = host.engine().monitor.metrics_text().await.unwrap();
    for line in ["damaged_bytes{volume=\"data\"} 12288", "found_bytes_total 12288", "repaired_bytes_total 0"]
    {
        assert!(metrics.contains(&format!("\nblockd_scrub_{line}\n")), "{line}");
    }
    assert!(metrics.contains("\nblockd_scrub_completed_timestamp_seconds{volume=\"data\"} "));
    drop(volume);
    host.restart().await;
    let volume = host.volume("data");
    assert_eq!(host.damage_problems().await.len(), 1, "as the volume shows it");
    let readable: Vec<bool> = [39, 40, 41, 42, 200].map(|block| can_read(&volume, block)).into();
    assert_eq!(readable, [true, false, false, true, false]);

    let task = host.scrub(scrub_of("data", true)).await;
    assert_eq!(task.state.to_string(), "Scrub-Done", "{task:?}");
    let findings = task.findings.unwrap();
    assert_eq!((findings.damage_total, findings.repaired_bytes), (0, 3 * BLOCK), "it was known");
    let [event] = &host.events_of("volume-repaired").await[..] else { panic!() };
    let first = format!("volume data at byte {} (8192 bytes) from ", 40 * BLOCK);
    assert!(event.message.contains(&first) && task.note.unwrap().starts_with(&first), "{event:?}");
    assert_eq!(host.damage_problems().await, Vec::<String>::new());
    model.assert_is(&volume);
    assert_eq!(host.scrub(scrub_of("data", false)).await.state.to_string(), "Scrub-Done");
}

#[tokio::test(flavor = "multi_thread")]
async fn unproven_content_is_not_written() {
    let host = Host::new().await;
    let (_, volume, mut model) = host.one_backup().await;
    // It keeps the former content of block 60.
    host.take_snapshot("data", &new_snapshot("before")).await;
    // Not in the backup: block 1000 is new, and block 60 has another content.
    for block in [1000, 60] {
        model.write(&volume, block * BLOCK, 77, BLOCK as usize);
    }
    host.call_at(CREATE_SNAPSHOT, &"data".parse().unwrap(), &new_snapshot("later")).await;
    assert_eq!(host.scrub(scrub_of("data", false)).await.state.to_string(), "Scrub-Done");
    for block in [40, 60, 1000] {
        assert!(damage_layers(&volume, block) >= 1, "block {block}");
    }
    let task = host.scrub(scrub_of("data", true)).await;
    assert_eq!(task.state.to_string(), "Scrub-Failed");
    let damage = task.findings.unwrap().damage;
    let repaired: Vec<_> =
        damage.iter().filter(|one| one.cause.ends_with("; repaired")).map(|one| one.offset_bytes).collect();
    // The former content of block 60, too.
    assert_eq!(repaired, [40 * BLOCK, 60 * BLOCK], "{damage:?}");
    assert!(damage.iter().any(|one| one.cause.contains("snapshot later;")), "{damage:?}");
    assert!(damage.len() >= 3 && damage.iter().all(|one| one.cause.ends_with("repaired")), "{damage:?}");
    assert!(can_read(&volume, 40) && !can_read(&volume, 60) && !can_read(&volume, 1000));
    assert!(host.damage_problems().await[0].contains("bytes of volume data are damaged"));
    // A write heals the block; the snapshot keeps its damage.
    model.write(&volume, 60 * BLOCK, 78, BLOCK as usize);
    model.write(&volume, 1000 * BLOCK, 79, BLOCK as usize);
    model.assert_is(&volume);
    assert_eq!(host.damage_problems().await.len(), 1);
    // A backup of the current content works, and then one of the snapshot does not.
    host.backup("data", false).await;
    // The problem ends with its volume.
    drop(volume);
    host.delete_volume("data").await;
    assert_eq!(host.damage_problems().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn scrub_with_budget_continues_where_it_ended() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 10 << 20);
    host.call_at(CREATE_SNAPSHOT, &"data".parse().unwrap(), &new_snapshot("one")).await;
    let mut read = Vec::new();
    for _ in 0..3 {
        let request = StartScrub { budget_bytes: Some(4 << 20), ..scrub_of("data", false) };
        read.push(host.scrub(request).await.findings.unwrap().block_bytes >> 20);
    }
    assert_eq!(read, [4, 4, 2]);
    assert_eq!(host.scrub(scrub_of("data", false)).await.findings.unwrap().block_bytes, 10 << 20);
    let refused = StartScrub { budget_bytes: Some(0), ..StartScrub::default() };
    assert_eq!(api_code(host.client.call(START_SCRUB, &refused).await), ErrorCode::InvalidRequest);
    let refused = scrub_of("other", false);
    assert_eq!(api_code(host.client.call(START_SCRUB, &refused).await), ErrorCode::VolumeNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn background_scrub_repairs_and_rests() {
    let mut host = Host::new().await;
    let (_, volume, model) = host.one_backup().await;
    assert_eq!(host.scrub(scrub_of("data", false)).await.state.to_string(), "Scrub-Done");
    let scrubs = async |host: &Host, stage: Option<TaskStage>| {
        let tasks = host.call(LIST_TASKS, &ListTasks::default()).await.items.into_iter();
        let states = tasks.map(|task| task.state).filter(|state| state.kind == TaskKind::Scrub);
        states.filter(|state| stage.is_none_or(|stage| state.stage == stage)).count()
    };
    host.engine().scrubs.continue_in_background().await.unwrap();
    assert_eq!(scrubs(&host, None).await, 1, "the budget is zero");
    assert_eq!(damage_layers(&volume, 40), 1);
    drop(volume);
    host.stop().await;
    let config = Config { scrub_bytes_per_day: 1 << 40, ..config(host.dir.path()) };
    host.daemon = Some(Daemon::start(config, false).await.unwrap());
    host.engine().scrubs.continue_in_background().await.unwrap();
    assert_eq!(scrubs(&host, None).await, 1, "the last one is not a day old");
    let db = host.engine().db.clone();
    // The clock was set back since.
    let later = "UPDATE scrubs SET completed = '2126-01-01T00:00:00Z'";
    db.run(|tx| tx.execute(later, []).map_err(DbError::from)).await.unwrap();
    host.engine().scrubs.continue_in_background().await.unwrap();
    let done = async || if scrubs(&host, Some(TaskStage::Done)).await == 2 { Ok(()) } else { Err("running") };
    eventually(done).await;
    model.assert_is(&host.volume("data"));
    assert_eq!(host.events_of("volume-repaired").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn background_scrub_does_not_hinder_a_deletion() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    volume.write(0, &pattern(7, 32 << 20), false).unwrap();
    host.take_snapshot("data", &new_snapshot("monday")).await;
    drop(volume);
    host.stop().await;
    let config = Config { scrub_bytes_per_day: 100 << 20, ..config(host.dir.path()) };
    host.daemon = Some(Daemon::start(config, false).await.unwrap());
    // It waits for the check of the closed volume.
    let begun = async || {
        host.engine().scrubs.continue_in_background().await.unwrap();
        host.engine().tasks.running().pop().ok_or("no scrub")
    };
    let task = eventually(begun).await;
    assert!(task.spec.is_background_scrub(), "{task:?}");
    host.delete_volume("data").await;
    assert_eq!(host.wait(task.id).await.state.to_string(), "Scrub-Stopped");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_of_an_older_snapshot_is_a_source() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    host.take_snapshot("data", &new_snapshot("monday")).await;
    host.backup_of_snapshot("data@monday").await;
    let monday = model.clone();
    model.write(&volume, 40 * BLOCK, 2, BLOCK as usize);
    // The chain is based on this one, in which the block has another content.
    host.backup("data", false).await;
    assert_eq!(host.scrub(scrub_of("data", false)).await.state.to_string(), "Scrub-Done");
    assert_eq!(damage_layers(&volume, 40), 2);
    let task = host.scrub(scrub_of("data", true)).await;
    assert_eq!(
        (task.state.to_string(), task.findings.unwrap().repaired_bytes),
        ("Scrub-Done".into(), 2 * BLOCK)
    );
    model.assert_is(&volume);
    let mut then = vec![0; SIZE_BYTES as usize];
    volume.view(volume.snapshots()[0].id).unwrap().read(0, &mut then).unwrap();
    assert!(then == monday.0, "the snapshot has its content");
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_deleted_during_a_scrub_of_all_is_skipped() {
    let host = Host::new().await;
    for (name, mib) in [("last", 1), ("first", 8)] {
        let volume = host.create_volume(name).await;
        volume.write(0, &pattern(7, mib << 20), false).unwrap();
        host.take_snapshot(name, &new_snapshot("one")).await;
    }
    // The volume without a complete scrub is first.
    assert_eq!(host.scrub(scrub_of("last", false)).await.state.to_string(), "Scrub-Done");
    let started = jiff::Timestamp::now();
    let (read, is_read) = tokio::sync::oneshot::channel();
    let (deleted, is_deleted) = std::sync::mpsc::channel();
    host.act_at("scrub read", move |_| {
        read.send(()).unwrap();
        tokio::task::block_in_place(|| is_deleted.recv().unwrap());
    });
    // The first read ends after a second, at most at half of the volume.
    let request = StartScrub { limit_bytes_per_second: Some(3 << 20), ..StartScrub::default() };
    let task = host.call(START_SCRUB, &request).await.task_id;
    is_read.await.unwrap();
    host.delete_volume("first").await;
    deleted.send(()).unwrap();
    let task = host.wait(task).await;
    assert_eq!(task.state.to_string(), "Scrub-Done", "{task:?}");
    let rows = host.engine().db.transaction(ScrubRow::all).unwrap();
    assert_eq!(rows.len(), 1);
    assert!(rows[0].completed.unwrap() > started, "the other volume is read");
}

#[tokio::test(flavor = "multi_thread")]
async fn layer_shared_with_a_clone_is_repaired_for_both() {
    let host = Host::new().await;
    let (_, volume, model) = host.one_backup().await;
    host.take_snapshot("data", &new_snapshot("one")).await;
    assert_eq!(host.scrub(scrub_of("data", false)).await.state.to_string(), "Scrub-Done");
    let (name, snapshot) = ("clone".parse().unwrap(), "data@one".parse().unwrap());
    let request = CloneVolume { name, snapshot, labels: Default::default() };
    host.call_at(CLONE_VOLUME, &"data".parse().unwrap(), &request).await;
    let clone = host.volume("clone");
    assert_eq!(damage_layers(&volume, 40), 1);
    // The clone has no backup, but the checksums of its source.
    assert_eq!(host.scrub(scrub_of("clone", true)).await.state.to_string(), "Scrub-Failed");
    assert!(!can_read(&clone, 40) && can_read(&clone, 41));
    assert_eq!(host.scrub(scrub_of("data", true)).await.state.to_string(), "Scrub-Done");
    model.assert_is(&volume);
    assert_eq!(host.scrub(scrub_of("clone", false)).await.state.to_string(), "Scrub-Done");
    model.assert_is(&clone);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_block_is_named_with_its_file() {
    let host = Host::new().await;
    let image = fs::read(ext4(host.dir.path())).unwrap();
    let volume = host.create_volume("data").await;
    for (index, part) in
        image.chunks(1 << 20).enumerate().filter(|(_, part)| part.iter().any(|byte| *byte != 0))
    {
        volume.write((index as u64) << 20, part, false).unwrap();
    }
    host.take_snapshot("data", &new_snapshot("one")).await;
    assert_eq!(host.scrub(scrub_of("data", false)).await.state.to_string(), "Scrub-Done");
    let content = fs::read(host.dir.path().join("files/dir/3")).unwrap();
    let at = image.chunks(BLOCK as usize).position(|block| block == &content[..BLOCK as usize]).unwrap();
    assert_eq!(damage_layers(&volume, at as u64), 1);
    let task = host.scrub(scrub_of("data", true)).await;
    let findings = task.findings.unwrap();
    let files: Vec<_> = findings.damage[0].files.iter().map(ToString::to_string).collect();
    assert_eq!(files, ["/dir/3"], "{findings:?}");
    assert!(task.error.unwrap().message.contains("no known cloud snapshot"), "nothing was backed up");
    let events = host.events_of("volume-damaged").await;
    assert!(events[0].message.ends_with("; files: /dir/3"), "{events:?}");
    assert!(!can_read(&volume, at as u64) && can_read(&volume, at as u64 + 1));
    // A backup of the damaged content is refused, and one of later content is not.
    host.create_credential().await;
    let request = StartBackup { snapshot: Some("data@one".parse().unwrap()), ..backup_of("data") };
    let refused = host.wait(host.call(START_BACKUP, &request).await.items[0].task_id).await;
    assert_eq!(refused.state.to_string(), "Backup-Failed", "{refused:?}");
    volume.write(at as u64 * BLOCK, &content[..BLOCK as usize], false).unwrap();
    host.backup("data", false).await;
}

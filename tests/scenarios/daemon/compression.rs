//! Compression of backups: by request, schedule and location, and mixed in one chain.

use super::*;
use blockd_api::{
    Compression, CompressionLevel, CredentialRef, Deduplication,
    cloudsnaps::VerifyDepth,
    credential_update::UpdateCredential,
    schedules::{CreateSchedule, UpdateSchedule},
};

fn compression(text: &str) -> Compression {
    text.parse().unwrap()
}

impl Host {
    /// Returns the compression of the newest cloud snapshot, which has one pack.
    async fn newest(&self) -> (Compression, CompressionLevel) {
        let newest = self.list().await.into_iter().max_by_key(|entry| entry.created_at).unwrap();
        let [used] = &newest.compression.levels[..] else { panic!("{newest:?}") };
        assert_eq!((used.packs, used.data_bytes), (1, newest.size_bytes));
        assert!((1..=newest.stored_bytes).contains(&used.stored_bytes), "{newest:?}");
        (newest.compression.mode.unwrap(), used.level)
    }

    async fn backup_as(&self, asked: Option<&str>) -> Task {
        let options = BackupOptions { compression: asked.map(compression), ..BackupOptions::default() };
        self.run_backup(&StartBackup { options, ..backup_of("v") }).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_of_the_request_precedes_the_location() {
    let host = Host::new().await;
    host.create_credential().await;
    let volume = host.create_volume("v").await;
    let mut model = Model::new();
    let nas: CredentialRef = "nas".parse().unwrap();
    let fixed = |text: &str| (compression(text), text.parse().unwrap());
    // Each backup stores the same content.
    let update = UpdateCredential { deduplicate: Some(Deduplication::Off), ..UpdateCredential::default() };
    host.call_at(UPDATE_CREDENTIAL, &nas, &update).await;
    // The schedule has its own one, then none.
    let schedule = CreateSchedule {
        selector: select_volume("v"),
        rules: vec![rule(NEVER)],
        compression: Some(compression("zstd:19")),
        ..CreateSchedule::default()
    };
    let schedule = host.call(CREATE_SCHEDULE, &schedule).await;
    assert_eq!(schedule.compression, Some(compression("zstd:19")));
    let run = async |host: &Host| {
        host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
        host.settled().await;
    };
    for (index, at) in ["auto", "lz4", "none", "zstd:6"].into_iter().enumerate() {
        let update = UpdateCredential { compression: Some(compression(at)), ..UpdateCredential::default() };
        assert_eq!(host.call_at(UPDATE_CREDENTIAL, &nas, &update).await.compression, compression(at));
        let mut write = || model.write(&volume, (index as u64) << 20, 1, 8192);
        write();
        host.backup_as(None).await;
        let newest = host.newest().await;
        // Guests count as active at the start of a backup, and limit the level.
        let is_first_of_auto = matches!(newest, (Compression::Auto, CompressionLevel::Zstd(3..=4)));
        assert!(if at == "auto" { is_first_of_auto } else { newest == fixed(at) }, "{at}: {newest:?}");
        write();
        host.backup_as(Some("zstd:1")).await;
        assert_eq!(host.newest().await, fixed("zstd:1"));
        write();
        run(&host).await;
        assert_eq!(host.newest().await, fixed("zstd:19"));
    }
    let update = UpdateSchedule { compression: Some(None), ..UpdateSchedule::default() };
    let updated = host.call_at(UPDATE_SCHEDULE, &schedule.schedule_id, &update).await;
    assert_eq!(updated.compression, None);
    model.write(&volume, 9 << 20, 1, 8192);
    run(&host).await;
    assert_eq!(host.newest().await, fixed("zstd:6"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chain_of_several_codecs_is_readable() {
    let host = Host::new().await;
    host.create_credential().await;
    let volume = host.create_volume("v").await;
    let mut model = Model::new();
    let mut last = None;
    for (index, level) in ["lz4", "zstd:3", "none", "zstd:19", "auto"].into_iter().enumerate() {
        let lines = (0..).flat_map(|number| format!("{number}: line of {level}\n").into_bytes());
        let (offset, text) = (index << 19, lines.take(1 << 20).collect::<Vec<u8>>());
        volume.write(offset as u64, &text, false).unwrap();
        model.0[offset..][..text.len()].copy_from_slice(&text);
        last = host.backup_as(Some(level)).await.cloud_snapshot_id;
        let newest = host.list().await.into_iter().max_by_key(|entry| entry.created_at).unwrap();
        assert_eq!(newest.compression.levels[0].stored_bytes < 1 << 20, level != "none", "{newest:?}");
    }
    let last = last.unwrap();
    model.assert_is(&*host.restore(&last, "whole").await);
    host.restore_lazily(&last, "lazy", true).await;
    eventually(async || if host.volume("lazy").is_lazy() { Err("hydrating") } else { Ok(()) }).await;
    model.assert_is(&host.volume("lazy"));
    let verified = host
        .verify(&StartVerify { cloud_snapshot_id: None, depth: VerifyDepth::Full, credential: None })
        .await;
    assert_eq!((verified.state.stage, verified.error), (TaskStage::Done, None));
}

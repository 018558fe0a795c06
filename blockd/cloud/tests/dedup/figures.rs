//! Stored bytes of clones and of volumes whose content returns.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_clones_store_at_most_1_6_times_one() {
    let host = Host::new(EncryptionMode::Aes256GcmSiv);
    let (image, mut noise) = (noise_volume(3, 0..BLOCKS), Noise(5));
    let (mut newest, mut total, mut one) = (Vec::new(), 0, 0);
    for n in 1..=10 {
        let clone = image.fork();
        // 5 % in extents of 1 to 16 blocks.
        let mut left = if n == 1 { 0 } else { BLOCKS / 20 };
        while left > 0 {
            let (start, len) = (noise.next() % (BLOCKS - 16), (1 + noise.next() % 16).min(left));
            (start..start + len).for_each(|block| clone.set(block, &noise.block()));
            left -= len;
        }
        let spec = of_volume(n, spec(n, SIZE, set(0..BLOCKS), set([]), None));
        let manifest =
            run(&host.repo, host.deduplicated(spec, &clone, &newest), &clone).await.unwrap().manifest;
        assert!(restored(&host.repo, &manifest).await.unwrap() == clone.content());
        total += manifest.stored_bytes;
        one = if n == 1 { total } else { one };
        newest.insert(0, manifest);
    }
    println!("10 clones with 5 % difference: {:.3} x one", total as f64 / one as f64);
    assert!(total * 10 <= one * 16, "{total} bytes, one has {one}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_store_new_content_only() {
    let host = Host::new(EncryptionMode::Aes256GcmSiv);
    let (live, mut noise) = (noise_volume(3, 0..BLOCKS), Noise(5));
    let mut base: Option<Manifest> = None;
    let (mut stored, mut fresh, mut plain) = (0, BLOCKS, BLOCKS);
    let mut days = vec![live.content()];
    for day in 0..=30 {
        let mut changed = set(0..if day == 0 { BLOCKS } else { 0 });
        // 2 % in extents of 8 blocks: half are new, a quarter returns, a quarter is copied to another place.
        while day > 0 && changed.len_blocks() < BLOCKS / 50 {
            let (start, from) = (noise.next() % (BLOCKS / 8) * 8, noise.next() % (BLOCKS / 8) * 8);
            let old = &days[noise.next() as usize % days.len()];
            let kind = noise.next() % 4;
            for n in 0..8 {
                match kind {
                    0 | 1 => live.set(start + n, &noise.block()),
                    2 => live.set(start + n, &old[&(start + n)]),
                    _ => live.set(start + n, &old[&(from + n)]),
                }
            }
            fresh += if kind < 2 { 8 } else { 0 };
            changed.insert_extent(Extent::new(BlockIndex(start), 8));
        }
        plain += if day == 0 { 0 } else { changed.len_blocks() };
        let spec = of_volume(1, spec(day + 1, SIZE, changed, set([]), base.as_ref()));
        let manifest = run(&host.repo, host.deduplicated(spec, &live, &[]), &live).await.unwrap().manifest;
        stored += manifest.stored_bytes;
        base = Some(manifest);
        days.push(live.content());
    }
    assert!(restored(&host.repo, &base.unwrap()).await.unwrap() == live.content());
    let of = |blocks: u64| stored as f64 / (blocks * BLOCK as u64) as f64;
    println!("30 increments: {:.3} x the distinct blocks, {:.3} x the changed ones", of(fresh), of(plain));
    assert!(of(fresh) < 1.02);
}

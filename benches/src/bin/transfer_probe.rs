//! Bare PUTs and GETs of `tools/bench backup --rates`, with the store client of the daemon.
//!
//! Reads the configuration of a store, in JSON on one line, from its standard input, then commands of the
//! form `OBJECTS BYTES PUTS GETS`: it stores objects of this length with up to PUTS requests in flight,
//! prints the seconds, reads them with up to GETS, prints the seconds, deletes them, and prints an empty
//! line. The objects are incompressible. It ends with its input.

#![allow(clippy::unwrap_used, reason = "a bench that cannot measure ends with a panic")]

use blockd_store::{
    BlobStore, HttpOptions, PutMode, RetryPolicy, StoreConfig, delete_objects, open, task_store,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::{
    io::{self, BufRead},
    sync::Arc,
    time::Instant,
};
use uuid::Uuid;

/// Returns incompressible bytes.
fn noise(len_bytes: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = (0..len_bytes.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len_bytes).collect::<Vec<u8>>().into()
}

/// Prints the seconds of the PUTs and of the GETs.
async fn measure(store: &Arc<dyn BlobStore>, [objects, len_bytes, puts, gets]: [usize; 4]) {
    let (run, body) = (Uuid::new_v4(), noise(len_bytes));
    let keys: Vec<String> = (0..objects).map(|nth| format!("blockd/probe/{run}/{nth}")).collect();
    let began = Instant::now();
    let put = |key: String| {
        let (store, body) = (Arc::clone(store), body.clone());
        // As in the daemon, on the threads of the runtime.
        let put = tokio::spawn(async move { store.put(&key, body, PutMode::Overwrite).await });
        async move { put.await.unwrap() }
    };
    futures::stream::iter(keys.clone()).map(put).buffer_unordered(puts).try_collect::<()>().await.unwrap();
    println!("{}", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let get = |key: String| {
        let store = Arc::clone(store);
        let get = tokio::spawn(async move { store.get_range(&key, 0, len_bytes as u64).await.map(drop) });
        async move { get.await.unwrap() }
    };
    futures::stream::iter(keys.clone()).map(get).buffer_unordered(gets).try_collect::<()>().await.unwrap();
    println!("{}", began.elapsed().as_secs_f64());
    delete_objects(&**store, keys.into_iter()).await.unwrap();
    println!();
}

#[tokio::main]
async fn main() {
    let mut lines = io::stdin().lock().lines();
    let config: StoreConfig = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let store = open(&config, &HttpOptions::default(), None).unwrap();
    // Retries as the daemon does.
    let (store, _) = task_store(store, RetryPolicy::default());
    for line in lines {
        let line = line.unwrap();
        let numbers: Vec<usize> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        measure(&store, numbers.try_into().unwrap()).await;
    }
}

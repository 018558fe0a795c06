//! External secrets: read on demand, cached in memory for a bounded time, never stored.
//!
//! Files and systemd credentials are read again after a few seconds. The output of a program is used for at
//! most [`SecretsConfig::cache_s`]. After a quarter of that the program runs again in the background, so that
//! a new value is used soon and a failing program leaves a value that stays valid for a while.

use crate::{command, error::ReferenceError, local::Local, sealing::fill_random, settings::SecretsConfig};
use blockd_api::SecretRef;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// Lifetime of a cached file or systemd credential.
pub const LOCAL_CACHE: Duration = Duration::from_secs(2);
/// Minimum interval between background refreshes of a value.
const REFRESH_PAUSE: Duration = Duration::from_secs(15);
/// Minimum interval between reads of a value that a store refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// Interval at which expired values are dropped.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(5);

/// Secret value.
pub struct Resolved {
    text: Zeroizing<String>,
    /// Distinguishes the value from others; meaningless to other processes.
    pub fingerprint: Fingerprint,
}

impl Resolved {
    /// The secret in clear. Never log or print it.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

/// Salted hash of a secret.
pub type Fingerprint = [u8; 32];

struct Cached {
    value: Arc<Resolved>,
    read: Instant,
    /// Time of the last attempt to read it again.
    tried: Instant,
    /// Time of the last read after a refusal that returned the same value.
    refused: Option<Instant>,
    /// A failed refresh was logged.
    is_logged: bool,
}

#[derive(Default)]
struct Slot {
    cached: Option<Cached>,
    /// Time and error of the last failed read.
    failed: Option<(Instant, ReferenceError)>,
    /// Held during a read; concurrent callers wait for its result.
    gate: Arc<tokio::sync::Mutex<()>>,
}

/// Reads and caches secrets.
pub struct References {
    local: Arc<Local>,
    cache: Duration,
    command_timeout: Duration,
    salt: [u8; 32],
    slots: Mutex<HashMap<SecretRef, Slot>>,
}

impl std::fmt::Debug for References {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("References").finish_non_exhaustive()
    }
}

impl References {
    /// Creates a cache from settings and the directory of systemd's credentials; reads nothing yet.
    pub fn new(config: &SecretsConfig, systemd_dir: Option<&Path>) -> Arc<Self> {
        let local = Local { systemd_dir: systemd_dir.map(PathBuf::from), file_dir: config.file_dir.clone() };
        let mut salt = [0; 32];
        // Fingerprints distinguish secrets even without a random salt.
        let _ = fill_random(&mut salt);
        Arc::new(Self {
            local: Arc::new(local),
            cache: Duration::from_secs(config.cache_s),
            command_timeout: Duration::from_millis(config.command_timeout_ms),
            salt,
            slots: Mutex::default(),
        })
    }

    /// Returns the age from which a value is refreshed, and its maximum age.
    fn lifetimes(&self, reference: &SecretRef) -> (Duration, Duration) {
        match reference {
            SecretRef::Command(_) => (self.cache / 4, self.cache),
            SecretRef::File(_) | SecretRef::Systemd(_) => (LOCAL_CACHE, LOCAL_CACHE),
        }
    }

    /// Returns the secret, from the cache or read now.
    ///
    /// # Errors
    /// It cannot be read, and is not in the cache.
    pub async fn resolve(self: &Arc<Self>, reference: &SecretRef) -> Result<Arc<Resolved>, ReferenceError> {
        let (fresh, longest) = self.lifetimes(reference);
        if let Some(value) = self.cached(reference, longest) {
            self.refresh_in_background(reference, fresh);
            return Ok(value);
        }
        let asked = Instant::now();
        let gate = Arc::clone(&self.slots.lock().entry(reference.clone()).or_default().gate);
        let _reading = gate.lock().await;
        match self.cached(reference, longest) {
            Some(value) => Ok(value),
            None => self.read_once(reference, asked).await,
        }
    }

    /// Reads the secret without the cache.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn resolve_uncached(&self, reference: &SecretRef) -> Result<Arc<Resolved>, ReferenceError> {
        let gate = Arc::clone(&self.slots.lock().entry(reference.clone()).or_default().gate);
        let _reading = gate.lock().await;
        self.read_and_cache(reference).await
    }

    /// Returns the secret after a store refused a value of it: another value if there is one.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn resolve_after_refusal(
        &self,
        reference: &SecretRef,
        refused: &Fingerprint,
    ) -> Result<Arc<Resolved>, ReferenceError> {
        let asked = Instant::now();
        let gate = Arc::clone(&self.slots.lock().entry(reference.clone()).or_default().gate);
        let _reading = gate.lock().await;
        let known = {
            let slots = self.slots.lock();
            let cached = slots.get(reference).and_then(|slot| slot.cached.as_ref());
            cached.and_then(|cached| {
                let is_other = cached.value.fingerprint != *refused;
                let was_read_lately = cached.refused.is_some_and(|at| at.elapsed() < REFUSED_PAUSE);
                (is_other || was_read_lately).then(|| Arc::clone(&cached.value))
            })
        };
        if let Some(value) = known {
            return Ok(value);
        }
        let read = self.read_once(reference, asked).await;
        if let Some(cached) = self.slots.lock().get_mut(reference).and_then(|slot| slot.cached.as_mut())
            && cached.value.fingerprint == *refused
        {
            cached.refused = Some(Instant::now());
        }
        read
    }

    fn cached(&self, reference: &SecretRef, longest: Duration) -> Option<Arc<Resolved>> {
        let slots = self.slots.lock();
        let cached = slots.get(reference)?.cached.as_ref()?;
        (cached.read.elapsed() < longest).then(|| Arc::clone(&cached.value))
    }

    /// Refreshes a stale value, while callers use the cached one.
    fn refresh_in_background(self: &Arc<Self>, reference: &SecretRef, fresh: Duration) {
        {
            let mut slots = self.slots.lock();
            let Some(cached) = slots.get_mut(reference).and_then(|slot| slot.cached.as_mut()) else { return };
            if cached.read.elapsed() < fresh || cached.tried.elapsed() < REFRESH_PAUSE.min(fresh) {
                return;
            }
            cached.tried = Instant::now();
        }
        let (this, reference) = (Arc::clone(self), reference.clone());
        tokio::spawn(async move {
            let Err(error) = this.resolve_uncached(&reference).await else { return };
            let mut slots = this.slots.lock();
            let Some(cached) = slots.get_mut(&reference).and_then(|slot| slot.cached.as_mut()) else {
                return;
            };
            if !std::mem::replace(&mut cached.is_logged, true) {
                let (_, longest) = this.lifetimes(&reference);
                let left_s = longest.saturating_sub(cached.read.elapsed()).as_secs();
                tracing::warn!(%reference, %error, left_s, "refresh failed on secret: the cached value is used until it expires");
            }
        });
    }

    /// Reads the secret. If a read that began after `asked` failed, returns its error: the caller waited for
    /// that read.
    async fn read_once(
        &self,
        reference: &SecretRef,
        asked: Instant,
    ) -> Result<Arc<Resolved>, ReferenceError> {
        let failed = self.slots.lock().get(reference).and_then(|slot| slot.failed.clone());
        match failed.filter(|(at, _)| *at >= asked) {
            Some((_, error)) => Err(error),
            None => self.read_and_cache(reference).await,
        }
    }

    async fn read_and_cache(&self, reference: &SecretRef) -> Result<Arc<Resolved>, ReferenceError> {
        let read = self.read(reference).await.inspect_err(|error| {
            if let Some(slot) = self.slots.lock().get_mut(reference) {
                slot.failed = Some((Instant::now(), error.clone()));
            }
        });
        let text = read?;
        let digest = Sha256::new().chain_update(self.salt).chain_update(text.as_bytes()).finalize();
        let value = Arc::new(Resolved { text, fingerprint: digest.into() });
        let now = Instant::now();
        let cached =
            Cached { value: Arc::clone(&value), read: now, tried: now, refused: None, is_logged: false };
        let before = self.slots.lock().entry(reference.clone()).or_default().cached.replace(cached);
        if before.is_some_and(|before| before.is_logged) {
            tracing::info!(%reference, "refresh succeeded again on secret");
        }
        Ok(value)
    }

    async fn read(&self, reference: &SecretRef) -> Result<Zeroizing<String>, ReferenceError> {
        if let SecretRef::Command(path) = reference {
            return command::run(&self.local, path, self.command_timeout).await;
        }
        let (local, reference) = (Arc::clone(&self.local), reference.clone());
        let read = tokio::task::spawn_blocking(move || match &reference {
            SecretRef::Systemd(name) => local.credential(name),
            SecretRef::File(path) | SecretRef::Command(path) => local.file(path),
        });
        read.await.map_err(|error| ReferenceError::Internal { what: error.to_string() })?
    }

    /// Drops all cached values except those of these references.
    pub fn keep_only(&self, needed: &HashSet<SecretRef>) {
        let mut slots = self.slots.lock();
        for (_, slot) in slots.iter_mut().filter(|(reference, _)| !needed.contains(reference)) {
            slot.cached = None;
        }
    }

    fn drop_expired(&self) {
        let mut slots = self.slots.lock();
        for (reference, slot) in &mut *slots {
            let (_, longest) = self.lifetimes(reference);
            if slot.cached.as_ref().is_some_and(|cached| cached.read.elapsed() >= longest) {
                slot.cached = None;
            }
        }
        // A running read holds its gate.
        slots.retain(|_, slot| slot.cached.is_some() || Arc::strong_count(&slot.gate) > 1);
    }
}

/// Drops expired values periodically; never returns.
pub async fn run_expiry(references: Arc<References>) {
    loop {
        tokio::time::sleep(EXPIRY_INTERVAL).await;
        references.drop_expired();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[tokio::test]
    async fn changed_file_is_read_again_after_its_lifetime() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let put = |secret: &str| {
            fs::write(&path, secret).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        };
        let config = SecretsConfig { file_dir: dir.path().to_owned(), ..SecretsConfig::default() };
        let references = References::new(&config, None);
        let reference = format!("file:{}", path.display()).parse().unwrap();
        put("first");
        assert_eq!(references.resolve(&reference).await.unwrap().expose(), "first");
        put("second");
        for slot in references.slots.lock().values_mut() {
            slot.cached.as_mut().unwrap().read -= LOCAL_CACHE;
        }
        assert_eq!(references.resolve(&reference).await.unwrap().expose(), "second");
    }
}

//! Secrets that lie elsewhere: they are fetched when they are needed, kept in memory for a bounded time, and never stored.
//!
//! A secret of a Vault is used for [`SecretsConfig::cache_s`](crate::config::SecretsConfig::cache_s) at most. After a quarter of that it is
//! fetched anew beside, so that a new value counts soon, and a Vault that goes away finds a value that is good for a while; it is used until
//! its time is over. That goes on for [`SecretsConfig::warm_s`](crate::config::SecretsConfig::warm_s) after the last use, so that what comes
//! every day finds it there. What lies on this host is read again every few seconds.

mod error;
mod local;
pub(crate) mod store;
mod vault;

pub(crate) use error::ReferenceError;

use crate::config::Config;
use blockd_api::{SecretRef, secrets::SecretProviders};
use local::Local;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use vault::Vault;
use zeroize::Zeroizing;

/// For how long what lies on this host is not read again.
const LOCAL_FOR: Duration = Duration::from_secs(2);
/// How soon a refresh that failed is tried again.
const REFRESH_AGAIN: Duration = Duration::from_secs(15);
/// How soon a store that refuses a secret has it fetched anew once more.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);
/// How often what is too old is forgotten, and renewed what gets old, unless secrets are kept for less.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often that is done at most.
const LOOK_AT_MOST: Duration = Duration::from_millis(100);

/// What was fetched.
struct Fetched {
    text: Zeroizing<String>,
    version: Option<u64>,
}

/// A secret that was fetched.
pub(crate) struct Resolved {
    text: Zeroizing<String>,
    /// Tells it from others; it says nothing of the secret to another process.
    pub fingerprint: Fingerprint,
    /// Its version, where whoever keeps it counts them.
    pub version: Option<u64>,
}

impl Resolved {
    /// The secret in clear. Never log or print it.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

/// Tells secrets from each other.
pub(crate) type Fingerprint = [u8; 32];

struct Kept {
    value: Arc<Resolved>,
    fetched: Instant,
    /// When it was last tried to fetch it anew.
    tried: Instant,
    /// When it was fetched because a store refused it, and was the same as before.
    refused: Option<Instant>,
    /// It was said that it cannot be fetched anew.
    told: bool,
}

#[derive(Default)]
struct Slot {
    kept: Option<Kept>,
    /// When somebody last needed it.
    used: Option<Instant>,
    /// When and why it could not be fetched last.
    failed: Option<(Instant, ReferenceError)>,
    /// Held by whoever fetches it: the others wait for what comes of that.
    gate: Arc<tokio::sync::Mutex<()>>,
}

/// Fetches secrets.
pub(crate) struct References {
    local: Arc<Local>,
    vault: Option<Arc<Vault>>,
    cache_for: Duration,
    warm_for: Duration,
    salt: [u8; 32],
    slots: Mutex<HashMap<SecretRef, Slot>>,
}

impl std::fmt::Debug for References {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("References").field("vault", &self.vault).finish_non_exhaustive()
    }
}

impl References {
    /// What the configuration says; asks nobody yet.
    pub fn new(config: &Config, systemd_dir: Option<&Path>) -> Arc<Self> {
        let vault = config.vault.as_ref();
        let own = vault.iter().flat_map(|vault| [&vault.token_credential, &vault.secret_id_credential]);
        let local = Arc::new(Local {
            systemd_dir: systemd_dir.map(PathBuf::from),
            file_dir: config.secrets.file_dir.clone(),
            own: own.flatten().cloned().collect(),
        });
        let mut salt = [0; 32];
        // Without random bytes fingerprints still tell secrets apart.
        let _ = crate::secrets::fill_random(&mut salt);
        Arc::new(Self {
            vault: vault.map(|config| Arc::new(Vault::new(config.clone(), Arc::clone(&local)))),
            local,
            cache_for: Duration::from_secs(config.secrets.cache_s),
            warm_for: Duration::from_secs(config.secrets.warm_s),
            salt,
            slots: Mutex::default(),
        })
    }

    /// For how long a value is as good as new, and for how long it is used at most.
    fn lifetimes(&self, reference: &SecretRef) -> (Duration, Duration) {
        match reference {
            SecretRef::Vault { .. } => (self.cache_for / 4, self.cache_for),
            _ => (LOCAL_FOR, LOCAL_FOR),
        }
    }

    /// The secret, fetched lately or now.
    ///
    /// # Errors
    /// It cannot be had, and was not lately.
    pub async fn resolve(self: &Arc<Self>, reference: &SecretRef) -> Result<Arc<Resolved>, ReferenceError> {
        let (fresh, most) = self.lifetimes(reference);
        self.slots.lock().entry(reference.clone()).or_default().used = Some(Instant::now());
        if let Some(value) = self.kept(reference, most) {
            self.refresh_beside(reference, fresh);
            return Ok(value);
        }
        let asked = Instant::now();
        let gate = Arc::clone(&self.slots.lock().entry(reference.clone()).or_default().gate);
        let _fetching = gate.lock().await;
        match self.kept(reference, most) {
            Some(value) => Ok(value),
            None => self.fetch_once(reference, asked).await,
        }
    }

    /// The secret, fetched now, whatever is known.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn resolve_anew(
        self: &Arc<Self>,
        reference: &SecretRef,
    ) -> Result<Arc<Resolved>, ReferenceError> {
        let gate = Arc::clone(&self.slots.lock().entry(reference.clone()).or_default().gate);
        let _fetching = gate.lock().await;
        self.fetch_and_keep(reference).await
    }

    /// The secret after a store has refused one that was fetched: another one, if there is one by now.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn resolve_after_refusal(
        self: &Arc<Self>,
        reference: &SecretRef,
        refused: &Fingerprint,
    ) -> Result<Arc<Resolved>, ReferenceError> {
        let asked = Instant::now();
        let gate = Arc::clone(&self.slots.lock().entry(reference.clone()).or_default().gate);
        let _fetching = gate.lock().await;
        let known = {
            let slots = self.slots.lock();
            let kept = slots.get(reference).and_then(|slot| slot.kept.as_ref());
            kept.and_then(|kept| {
                let is_other = kept.value.fingerprint != *refused;
                let is_told = kept.refused.is_some_and(|at| at.elapsed() < REFUSED_AGAIN);
                (is_other || is_told).then(|| Arc::clone(&kept.value))
            })
        };
        if let Some(value) = known {
            return Ok(value);
        }
        let fetched = self.fetch_once(reference, asked).await;
        if let Some(kept) = self.slots.lock().get_mut(reference).and_then(|slot| slot.kept.as_mut())
            && kept.value.fingerprint == *refused
        {
            kept.refused = Some(Instant::now());
        }
        fetched
    }

    /// Fetches a secret that nothing may need, and keeps nothing.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn check(&self, reference: &SecretRef) -> Result<Option<u64>, ReferenceError> {
        Ok(self.fetch(reference).await?.version)
    }

    fn kept(&self, reference: &SecretRef, most: Duration) -> Option<Arc<Resolved>> {
        let slots = self.slots.lock();
        let kept = slots.get(reference)?.kept.as_ref()?;
        (kept.fetched.elapsed() < most).then(|| Arc::clone(&kept.value))
    }

    /// Has a value that is not new any more fetched anew, while the one that is there is used.
    fn refresh_beside(self: &Arc<Self>, reference: &SecretRef, fresh: Duration) {
        {
            let mut slots = self.slots.lock();
            let Some(kept) = slots.get_mut(reference).and_then(|slot| slot.kept.as_mut()) else { return };
            let again = REFRESH_AGAIN.min(fresh);
            if kept.fetched.elapsed() < fresh || kept.tried.elapsed() < again {
                return;
            }
            kept.tried = Instant::now();
        }
        let (this, reference) = (Arc::clone(self), reference.clone());
        tokio::spawn(async move {
            let Err(error) = this.resolve_anew(&reference).await else { return };
            let mut slots = this.slots.lock();
            let Some(kept) = slots.get_mut(&reference).and_then(|slot| slot.kept.as_mut()) else { return };
            if !std::mem::replace(&mut kept.told, true) {
                let (_, most) = this.lifetimes(&reference);
                let left_s = most.saturating_sub(kept.fetched.elapsed()).as_secs();
                tracing::warn!(%reference, %error, left_s, "a secret cannot be fetched anew: the one of before is used until its time is over");
            }
        });
    }

    /// Has what lies in a Vault and was needed lately fetched anew before its time is over, also while nobody asks for it.
    fn renew_warm(self: &Arc<Self>) {
        let warm: Vec<SecretRef> = {
            let slots = self.slots.lock();
            let is_warm = |slot: &Slot| slot.used.is_some_and(|used| used.elapsed() < self.warm_for);
            let known = slots.iter().filter(|(reference, slot)| {
                matches!(reference, SecretRef::Vault { .. }) && slot.kept.is_some() && is_warm(slot)
            });
            known.map(|(reference, _)| reference.clone()).collect()
        };
        for reference in warm {
            let (fresh, _) = self.lifetimes(&reference);
            self.refresh_beside(&reference, fresh);
        }
    }

    /// Fetches it, if that has not failed since it was asked for: all who waited for that are told, rather than to wait as long once
    /// more, one after the other.
    async fn fetch_once(
        &self,
        reference: &SecretRef,
        asked: Instant,
    ) -> Result<Arc<Resolved>, ReferenceError> {
        let failed = self.slots.lock().get(reference).and_then(|slot| slot.failed.clone());
        match failed.filter(|(at, _)| *at >= asked) {
            Some((_, error)) => Err(error),
            None => self.fetch_and_keep(reference).await,
        }
    }

    async fn fetch_and_keep(&self, reference: &SecretRef) -> Result<Arc<Resolved>, ReferenceError> {
        let fetched = self.fetch(reference).await.inspect_err(|error| {
            if let Some(slot) = self.slots.lock().get_mut(reference) {
                slot.failed = Some((Instant::now(), error.clone()));
            }
        });
        let Fetched { text, version } = fetched?;
        let digest = Sha256::new().chain_update(self.salt).chain_update(text.as_bytes()).finalize();
        let value = Arc::new(Resolved { text, fingerprint: digest.into(), version });
        let now = Instant::now();
        let kept = Kept { value: Arc::clone(&value), fetched: now, tried: now, refused: None, told: false };
        let before = self.slots.lock().entry(reference.clone()).or_default().kept.replace(kept);
        if before.is_some_and(|before| before.told) {
            tracing::info!(%reference, "the secret can be fetched again");
        }
        Ok(value)
    }

    async fn fetch(&self, reference: &SecretRef) -> Result<Fetched, ReferenceError> {
        let fetched = match reference {
            SecretRef::Vault { mount, path, field } => {
                let vault = self.vault.as_ref().ok_or(ReferenceError::NoVault)?;
                vault.read(mount, path, field).await?
            }
            SecretRef::Systemd(_) | SecretRef::File(_) => {
                let (local, reference) = (Arc::clone(&self.local), reference.clone());
                let read = tokio::task::spawn_blocking(move || match &reference {
                    SecretRef::Systemd(name) => local.credential(name),
                    SecretRef::File(path) => local.file(path),
                    SecretRef::Vault { .. } => Err(ReferenceError::NoVault),
                });
                let text =
                    read.await.map_err(|error| ReferenceError::Internal { what: error.to_string() })??;
                Fetched { text, version: None }
            }
        };
        let text = local::usable(fetched.text)?;
        Ok(Fetched { text, ..fetched })
    }

    /// Forgets all that is not among what credentials refer to: nothing of it is renewed.
    pub fn keep_only(&self, needed: &HashSet<SecretRef>) {
        let mut slots = self.slots.lock();
        for (_, slot) in slots.iter_mut().filter(|(reference, _)| !needed.contains(reference)) {
            slot.kept = None;
            slot.used = None;
        }
    }

    /// Forgets what is too old to be used.
    fn forget_old(&self) {
        let mut slots = self.slots.lock();
        for (reference, slot) in &mut *slots {
            let (_, most) = self.lifetimes(reference);
            if slot.kept.as_ref().is_some_and(|kept| kept.fetched.elapsed() >= most) {
                slot.kept = None;
            }
        }
        // Whoever fetches one has a hold of its gate.
        slots.retain(|_, slot| slot.kept.is_some() || Arc::strong_count(&slot.gate) > 1);
    }

    /// How those do who keep secrets.
    pub async fn providers(&self) -> SecretProviders {
        SecretProviders {
            vault: match &self.vault {
                Some(vault) => Some(vault.status().await),
                None => None,
            },
            systemd_dir: self.local.systemd_dir.clone(),
            file_dir: self.local.file_dir.clone(),
            cache_s: self.cache_for.as_secs(),
        }
    }
}

/// Keeps the token of a Vault good, renews what is needed, and forgets what is too old, until it is aborted.
pub(crate) fn start(references: &Arc<References>) -> JoinHandle<()> {
    let references = Arc::clone(references);
    tokio::spawn(async move {
        let look = async {
            let every = (references.cache_for / 8).clamp(LOOK_AT_MOST, LOOK_EVERY);
            loop {
                tokio::time::sleep(every).await;
                references.forget_old();
                references.renew_warm();
            }
        };
        let keep_good = async {
            match &references.vault {
                Some(vault) => loop {
                    let next = vault.keep_token_good().await;
                    tokio::time::sleep(next).await;
                },
                None => std::future::pending::<()>().await,
            }
        };
        tokio::join!(look, keep_good);
    })
}

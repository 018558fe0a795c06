//! A Vault that does what it should, and one that does not.

use super::{
    super::{ReferenceError, References},
    double::{Double, TokenState, Trick},
};
use crate::config::Config;
use blockd_api::{ErrorCode, SecretRef, secrets::VaultState};
use serde_json::json;
use std::{os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc, time::Duration};

const KEY: &str = "vault:secret/blockd/s3#key";
/// Far beyond what anything takes.
const PATIENCE: Duration = Duration::from_secs(120);

fn key() -> SecretRef {
    KEY.parse().unwrap()
}

struct Bed {
    dir: tempfile::TempDir,
    double: Double,
}

impl Bed {
    async fn new() -> Self {
        let bed = Self { dir: tempfile::tempdir().unwrap(), double: Double::new().await };
        bed.double.put(
            "secret/data/blockd/s3",
            json!({ "key": "planted-key", "number": 7, "list": [1, {"a": 2}] }),
        );
        bed.put("token", "planted-token\n");
        bed.put("secret-id", "planted-secret-id");
        bed.double.token("planted-token", TokenState::lasting(0, false));
        bed
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn with(&self, lines: &str, cache_s: u64) -> Arc<References> {
        self.with_patience(lines, cache_s, 60_000)
    }

    fn with_patience(&self, lines: &str, cache_s: u64, timeout_ms: u64) -> Arc<References> {
        let text = format!(
            "[secrets]\ncache_s = {cache_s}\n[vault]\naddress = \"http://{}\"\ntimeout_ms = {timeout_ms}\nattempts = 2\n{lines}\n",
            self.double.address
        );
        let config: Config = toml::from_str(&text).unwrap();
        References::new(&config, None)
    }

    fn by_token(&self, cache_s: u64) -> Arc<References> {
        self.with(&format!("token_file = \"{}\"", self.dir.path().join("token").display()), cache_s)
    }

    fn by_role(&self) -> Arc<References> {
        self.by_role_with_patience(60_000)
    }

    fn by_role_with_patience(&self, timeout_ms: u64) -> Arc<References> {
        let secret_id = self.dir.path().join("secret-id");
        let lines = format!("role_id = \"blockd\"\nsecret_id_file = \"{}\"", secret_id.display());
        self.with_patience(&lines, 3600, timeout_ms)
    }

    fn reads(&self) -> usize {
        self.double.asked("GET /v1/secret/data/")
    }
}

async fn fails(references: &Arc<References>, reference: &str) -> ReferenceError {
    let error = references.resolve_anew(&reference.parse().unwrap()).await.map(|_| ()).unwrap_err();
    let text = error.to_string();
    assert!(!text.contains("planted") && !text.contains('\n'), "{text}");
    error
}

#[tokio::test]
async fn a_field_is_read_once_and_kept() {
    let bed = Bed::new().await;
    let references = bed.by_token(3600);
    for _ in 0..3 {
        let resolved = references.resolve(&key()).await.unwrap();
        assert_eq!((resolved.expose(), resolved.version), ("planted-key", Some(7)));
    }
    assert_eq!(bed.reads(), 1);
    let key = key();
    let both = tokio::join!(references.resolve_anew(&key), references.resolve(&key));
    assert!(both.0.is_ok() && both.1.is_ok());
    assert_eq!(bed.reads(), 2);
    let others = bed.by_token(3600);
    let many = futures::future::join_all((0..8).map(|_| others.resolve(&key))).await;
    assert!(many.iter().all(Result::is_ok));
    assert_eq!(bed.reads(), 3, "those that come at once wait for the first");
    assert!(!format!("{references:?}").contains("planted"));
    let in_namespace = bed.with(
        &format!("namespace = \"team/a\"\ntoken_file = \"{}\"", bed.dir.path().join("token").display()),
        1,
    );
    in_namespace.check(&key).await.unwrap();
    assert_eq!(bed.double.inside.lock().namespaces.last().unwrap(), "team/a");
    in_namespace.check(&"vault:team/kv//a b/c#d".parse().unwrap()).await.unwrap_err();
    assert_eq!(bed.double.asked("GET /v1/team/kv/data/a%20b/c"), 1);
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let bed = Bed::new().await;
    let references = bed.by_token(3600);
    for (reference, word) in [
        ("vault:secret/other#key", "has nothing at secret/other (404)"),
        ("vault:secret/blockd/s3#kye", "has no field kye at secret/blockd/s3: there are key, list, number"),
        ("vault:secret/blockd/s3#number", "whose field number is no text"),
        ("vault:secret/blockd/s3#list", "whose field list is no text"),
    ] {
        let error = fails(&references, reference).await;
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(error.code(), ErrorCode::SecretUnavailable);
    }
    bed.double.put("secret/data/blockd/s3", json!({ "key": "" }));
    assert!(fails(&references, KEY).await.to_string().contains("is empty"));
    let without = References::new(&Config::default(), None);
    assert!(fails(&without, KEY).await.to_string().contains("[vault]"));
}

#[tokio::test]
async fn a_new_token_in_the_file_counts_at_once() {
    let bed = Bed::new().await;
    let references = bed.by_token(3600);
    references.resolve_anew(&key()).await.unwrap();
    bed.double.inside.lock().tokens.clear();
    let error = fails(&references, KEY).await.to_string();
    assert!(error.contains("refused the token (403): renew it in /") && error.contains("/token"), "{error}");
    bed.double.token("planted-other", TokenState::lasting(0, false));
    bed.put("token", "planted-other");
    references.resolve_anew(&key()).await.unwrap();
    let unreading = TokenState { reads: false, ..TokenState::lasting(0, false) };
    bed.double.token("planted-other", unreading);
    let error = fails(&references, KEY).await.to_string();
    assert!(error.contains("policy with `read`"), "{error}");
    std::fs::remove_file(bed.dir.path().join("token")).unwrap();
    let error = fails(&references, KEY).await.to_string();
    assert!(error.contains("is not asked: cannot read /") && error.contains("it is not there"), "{error}");
    let path = bed.put("token", "planted-other");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(fails(&references, KEY).await.to_string().contains("chmod 600"));
}

#[tokio::test]
async fn a_role_logs_in_when_its_token_ends_or_is_taken_back() {
    let bed = Bed::new().await;
    let references = bed.by_role();
    references.resolve_anew(&key()).await.unwrap();
    references.resolve_anew(&key()).await.unwrap();
    assert_eq!(bed.double.inside.lock().logins, 1);
    // One that ends so soon that it may have done so before it is used: then that takes another one.
    bed.double.inside.lock().login_ttl_s = 4;
    let other = bed.by_role();
    other.resolve_anew(&key()).await.unwrap();
    let logins = bed.double.inside.lock().logins;
    bed.double.inside.lock().login_ttl_s = 3600;
    tokio::time::sleep(Duration::from_millis(4100)).await;
    // Before it is refused.
    let reads = bed.reads();
    other.resolve_anew(&key()).await.unwrap();
    assert_eq!(bed.reads(), reads + 1);
    assert_eq!(bed.double.inside.lock().logins, logins + 1);

    tokio::time::sleep(Duration::from_millis(1100)).await;
    bed.double.inside.lock().tokens.clear();
    references.resolve_anew(&key()).await.unwrap();
    assert_eq!(bed.double.inside.lock().logins, logins + 2, "once after the end, once after the refusal");

    tokio::time::sleep(Duration::from_millis(1100)).await;
    bed.double.inside.lock().tokens.clear();
    bed.double.inside.lock().secret_id = "another".into();
    let error = fails(&references, KEY).await.to_string();
    assert!(error.contains("refused the login as role (400)") && error.contains("/secret-id"), "{error}");
    bed.put("secret-id", "another");
    references.resolve_anew(&key()).await.unwrap();
}

#[tokio::test]
async fn a_token_is_renewed_in_time() {
    let bed = Bed::new().await;
    const TTL_S: u64 = 12;
    bed.double.token("planted-token", TokenState::lasting(TTL_S, true));
    let references = bed.by_token(3600);
    let vault = references.vault.as_ref().unwrap();
    // Past the end of what it was given at first.
    let end = tokio::time::Instant::now() + Duration::from_secs(TTL_S + 1);
    while tokio::time::Instant::now() < end {
        let next = vault.keep_token_good().await;
        tokio::time::sleep(next.min(Duration::from_millis(600))).await;
    }
    assert!(bed.double.asked("POST /v1/auth/token/renew-self") >= 1);
    references.resolve_anew(&key()).await.unwrap();
    let status = vault.status().await;
    assert_eq!((status.state, status.version.as_deref()), (VaultState::Ready, Some("9.9")));
    assert!(status.token_valid_until.is_some() && status.token_renewable == Some(true), "{status:?}");

    // One that cannot be renewed is used until its end.
    bed.double.token("planted-token", TokenState::lasting(3600, false));
    let renewals = bed.double.asked("POST /v1/auth/token/renew-self");
    let fresh = bed.by_token(3600);
    fresh.vault.as_ref().unwrap().keep_token_good().await;
    assert_eq!(bed.double.asked("POST /v1/auth/token/renew-self"), renewals);
    let status = fresh.vault.as_ref().unwrap().status().await;
    assert_eq!(status.token_renewable, Some(false));
}

#[tokio::test]
async fn one_that_is_of_no_use_is_told_from_another() {
    let bed = Bed::new().await;
    let references = bed.by_token(3600);
    let token = format!("token_file = \"{}\"", bed.dir.path().join("token").display());
    let impatient = bed.with_patience(&token, 3600, 500);
    for (trick, word, code, attempts) in [
        (Trick::Sealed, "is sealed", ErrorCode::SecretUnreachable, 1),
        (Trick::Silent, "no answer within 500 ms", ErrorCode::SecretUnreachable, 2),
        (Trick::Endless, "more than 1048576 bytes", ErrorCode::SecretUnavailable, 1),
        (Trick::Garbage, "is it a Vault?", ErrorCode::SecretUnavailable, 1),
        (Trick::Status(500), "answers 500", ErrorCode::SecretUnreachable, 2),
        (Trick::Status(429), "answers 429", ErrorCode::SecretUnreachable, 2),
        (Trick::Status(307), "redirections are not followed", ErrorCode::SecretUnreachable, 1),
        (Trick::Status(400), "answers 400", ErrorCode::SecretUnavailable, 1),
    ] {
        bed.double.trick(trick);
        let before = bed.reads();
        let references = if trick == Trick::Silent { &impatient } else { &references };
        let error = fails(references, KEY).await;
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!((error.code(), bed.reads() - before), (code, attempts), "{error}");
    }
    bed.double.trick(Trick::Once(502));
    references.resolve_anew(&key()).await.unwrap();

    bed.double.trick(Trick::Sealed);
    let status = references.providers().await.vault.unwrap();
    assert_eq!(status.state, VaultState::Sealed);
    bed.double.trick(Trick::None);
    bed.double.inside.lock().tokens.clear();
    let status = references.providers().await.vault.unwrap();
    assert_eq!((status.state, status.error.is_some()), (VaultState::Refused, true), "{status:?}");
}

#[tokio::test]
async fn while_it_is_away_what_is_known_is_used_for_a_bounded_time() {
    let bed = Bed::new().await;
    let references = bed.by_token(12);
    references.resolve(&key()).await.unwrap();
    bed.double.trick(Trick::Status(503));
    tokio::time::sleep(Duration::from_millis(3100)).await;
    let reads = bed.reads();
    assert_eq!(references.resolve(&key()).await.unwrap().expose(), "planted-key");
    tokio::time::sleep(Duration::from_millis(9100)).await;
    assert!(bed.reads() > reads, "it was not tried beside");
    let error = references.resolve(&key()).await.map(|_| ()).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    references.forget_old();
    assert!(references.slots.lock().is_empty());
    // What changed counts when it is back.
    bed.double.put("secret/data/blockd/s3", json!({ "key": "planted-new" }));
    bed.double.trick(Trick::None);
    assert_eq!(references.resolve(&key()).await.unwrap().expose(), "planted-new");
}

#[tokio::test]
async fn what_no_credential_refers_to_any_more_is_forgotten_and_not_renewed() {
    let bed = Bed::new().await;
    // As good as new for no time at all: each look would renew it.
    let references = bed.by_token(0);
    references.resolve(&key()).await.unwrap();
    references.keep_only(&[key()].into());
    assert!(references.slots.lock()[&key()].kept.is_some());
    references.keep_only(&[].into());
    let slots = references.slots.lock();
    assert!(slots.values().all(|slot| slot.kept.is_none() && slot.used.is_none()));
}

#[tokio::test]
async fn nobody_there_is_no_news_for_long() {
    let bed = Bed::new().await;
    let references = bed.by_token(3600);
    let inside = Arc::clone(&bed.double.inside);
    let Bed { dir, double } = bed;
    drop(double);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let error = fails(&references, KEY).await;
    assert!(error.is_retryable() && error.to_string().contains("cannot be reached"), "{error}");
    assert_eq!(references.providers().await.vault.unwrap().state, VaultState::Unreachable);
    drop((dir, inside));
}

#[tokio::test]
async fn who_waits_for_what_fails_fails_with_it() {
    let bed = Bed::new().await;
    let references = bed.by_role_with_patience(500);
    bed.double.trick(Trick::Silent);
    let key = key();
    let all = futures::future::join_all((0..8).map(|_| references.resolve(&key))).await;
    assert!(all.iter().all(Result::is_err));
    let fields = ["a", "b", "c", "d", "e", "f"]
        .map(|field| format!("vault:secret/blockd/s3#{field}").parse().unwrap());
    let all = futures::future::join_all(fields.iter().map(|field| references.resolve(field))).await;
    assert!(all.iter().all(Result::is_err));
    // A login each time, of two attempts at most: the others do not wait for one of their own.
    let asked = bed.double.asked("POST /v1/auth/approle/login");
    assert!((1..=4).contains(&asked), "{asked} logins were asked for");
    bed.double.trick(Trick::None);
    let mut tries = 0;
    while let Err(error) = references.resolve(&key).await {
        tries += 1;
        assert!(error.is_retryable() && tries < 100, "who asks after that has it tried anew: {error}");
    }
}

#[tokio::test]
async fn what_was_needed_lately_is_renewed_in_time_and_outlives_a_vault_that_goes_away() {
    let bed = Bed::new().await;
    let token = bed.dir.path().join("token");
    let with = |warm_s: u64| {
        let text = format!(
            "[secrets]\ncache_s = 8\nwarm_s = {warm_s}\n[vault]\naddress = \"http://{}\"\ntimeout_ms = 60000\nattempts = 1\ntoken_file = \"{}\"\n",
            bed.double.address,
            token.display()
        );
        References::new(&toml::from_str::<Config>(&text).unwrap(), None)
    };
    let (warm, cold) = (with(600), with(0));
    let keepers = [super::super::start(&warm), super::super::start(&cold)];
    let key = key();
    cold.resolve(&key).await.unwrap();
    warm.resolve(&key).await.unwrap();
    // Nobody asks, and it is renewed all the same: longer than it is kept without.
    let before = bed.reads();
    let began = std::time::Instant::now();
    while bed.reads() < before + 6 {
        assert!(began.elapsed() < PATIENCE, "it is not renewed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(8), "it is renewed too often");
    bed.double.inside.lock().trick = Trick::Sealed;
    assert_eq!(warm.resolve(&key).await.unwrap().expose(), "planted-key");
    // It is bounded all the same.
    assert!(cold.resolve(&key).await.is_err(), "what nobody needs is not kept");
    let gone = std::time::Instant::now();
    while warm.resolve(&key).await.is_ok() {
        assert!(gone.elapsed() < PATIENCE, "it is used for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bed.double.inside.lock().trick = Trick::None;
    assert!(warm.resolve(&key).await.is_ok());
    for keeper in keepers {
        keeper.abort();
    }
}

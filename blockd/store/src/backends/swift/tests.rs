use super::{listing::unix_seconds, *};
use blockd_store_config::SwiftAccess;
use blockd_testkit::store::{FakeHttpServer, HttpReply, HttpRequest};
use parking_lot::Mutex;
use std::sync::Arc;

const KEY: &str = "blockd/data/x";

/// A Swift with one object, behind an identity service of all versions. Each login gives another token; the
/// newest is good.
async fn cloud(object: impl Fn(&HttpRequest) -> HttpReply + Send + Sync + 'static) -> FakeHttpServer {
    let (logins, url) = (Mutex::new(0), Arc::new(Mutex::new(String::new())));
    let known = url.clone();
    let server = FakeHttpServer::start(move |request| {
        let storage = format!("{}/v1/AUTH_x", known.lock());
        let mut logins = logins.lock();
        let token = |logins: u32| format!("token-{logins}");
        match request.path.as_str() {
            "/auth/v1.0" if request.header("x-auth-key") != "planted" => HttpReply::status(401),
            "/auth/v1.0" => {
                *logins += 1;
                HttpReply::status(200)
                    .header("X-Auth-Token", token(*logins))
                    .header("X-Storage-Url", storage)
                    .header("X-Auth-Token-Expires", "3600")
            }
            "/v2.0/tokens" => {
                *logins += 1;
                HttpReply::status(200).body(
                    json!({"access": {"token": {"id": token(*logins), "expires": "2999-01-01T00:00:00Z"},
                        "serviceCatalog": [{"type": "object-store", "endpoints": [{"region": "r", "publicURL": storage}]}]}})
                    .to_string(),
                )
            }
            "/v3/auth/tokens" => {
                *logins += 1;
                HttpReply::status(201).header("X-Subject-Token", token(*logins)).body(
                    json!({"token": {"expires_at": "2999-01-01T00:00:00Z", "catalog": [{"type": "object-store",
                        "endpoints": [{"interface": "public", "region_id": "r", "url": storage}]}]}})
                    .to_string(),
                )
            }
            _ if request.header("x-auth-token") != token(*logins) => HttpReply::status(401),
            _ => object(request),
        }
    })
    .await;
    *url.lock() = server.url();
    server
}

/// Returns the configuration of a container with this key and token.
fn config(auth: SwiftAuth, secret: &str) -> SwiftConfig {
    let secret = Some(Secret::new(secret.to_owned()).into());
    let access = SwiftAccess { key: secret.clone(), token: secret };
    SwiftConfig { container: "box".into(), auth, access }
}

fn store(auth: SwiftAuth, secret: &str) -> SwiftStore {
    // Who answers is in time, on a busy machine as well.
    let http = HttpOptions { stall_timeout: Duration::from_secs(10), ..HttpOptions::default() };
    open(&config(auth, secret), &http).unwrap()
}

fn v1(server: &FakeHttpServer, key: &str) -> SwiftStore {
    let auth_url = format!("{}/auth/v1.0/", server.url());
    store(SwiftAuth::V1 { auth_url, user: "test:tester".into() }, key)
}

fn hello(_: &HttpRequest) -> HttpReply {
    HttpReply::status(200).header("ETag", "5d41402abc4b2a76b9719d911017c592").body("hello")
}

#[tokio::test]
async fn swift_auth_versions_lead_to_the_object() {
    let server = cloud(hello).await;
    let user = "tester".to_owned();
    let v2 = SwiftAuth::V2 {
        auth_url: format!("{}/v2.0", server.url()),
        user: user.clone(),
        tenant_name: Some("ten".into()),
        tenant_id: None,
        region: Some("r".into()),
    };
    let v3 = SwiftAuth::V3 {
        auth_url: format!("{}/v3", server.url()),
        user,
        user_domain: "ud".into(),
        project: "pro".into(),
        project_domain: "pd".into(),
        region: None,
    };
    for store in [v1(&server, "planted"), store(v2, "planted"), store(v3, "planted")] {
        assert_eq!(store.get(KEY, 10).await.unwrap(), b"hello"[..]);
    }
    let seen = server.seen();
    let login = |path: &str| -> serde_json::Value {
        serde_json::from_slice(&seen.iter().find(|request| request.path == path).unwrap().body).unwrap()
    };
    assert_eq!(
        login("/v2.0/tokens"),
        json!({"auth": {"passwordCredentials": {"username": "tester", "password": "planted"}, "tenantName": "ten"}})
    );
    assert_eq!(
        login("/v3/auth/tokens"),
        json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": "tester", "domain": {"name": "ud"}, "password": "planted"}}},
            "scope": {"project": {"name": "pro", "domain": {"name": "pd"}}}}})
    );
    assert_eq!(seen.last().unwrap().path, format!("/v1/AUTH_x/box/{KEY}"));
}

#[tokio::test]
async fn swift_token_is_reused_and_replaced_after_a_refusal() {
    let server = cloud(hello).await;
    let (one, other) = (v1(&server, "planted"), v1(&server, "planted"));
    let logins = || server.seen().iter().filter(|request| request.path == "/auth/v1.0").count();
    for _ in 0..3 {
        one.get(KEY, 10).await.unwrap();
    }
    assert_eq!(logins(), 1);
    // A new login invalidates the first token.
    other.get(KEY, 10).await.unwrap();
    let many = futures::future::join_all((0..8).map(|_| one.get(KEY, 10))).await;
    assert!(many.into_iter().all(|body| body.unwrap() == b"hello"[..]));
    assert_eq!(logins(), 3, "eight requests that were refused at once log in once");
}

#[tokio::test]
async fn refused_swift_login_is_reported_without_secrets() {
    let server = cloud(hello).await;
    let error = v1(&server, "planted wrong").get(KEY, 10).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unauthorized, "{error}");
    let url = format!("{}/v1/AUTH_x", server.url());
    let token = store(SwiftAuth::Token { storage_url: url }, "planted old");
    let ended = token.get(KEY, 10).await.unwrap_err();
    assert_eq!(ended.kind, StoreErrorKind::Unauthorized);
    assert!(ended.to_string().contains("the token was refused"), "{ended}");
    assert!(!format!("{error} {error:?} {ended} {ended:?}").contains("planted"), "{error:?} {ended:?}");
    let config = config(SwiftAuth::Token { storage_url: "http://u:planted@h/".into() }, "t");
    let error = open(&config, &HttpOptions::default()).err().unwrap();
    assert_eq!(error.kind, StoreErrorKind::Misconfigured);
}

#[tokio::test]
async fn refusal_of_a_full_container_has_its_date() {
    let full = HttpReply::status(413).header("Date", "Sat, 21 Nov 2026 12:00:00 GMT");
    let server = cloud(move |_| full.clone()).await;
    let put = v1(&server, "planted").put(KEY, Bytes::from_static(b"x"), PutMode::Overwrite).await;
    let error = put.unwrap_err();
    let told = error.store_time_unix_s.map(NonZero::get);
    assert_eq!((error.kind, told), (StoreErrorKind::NoSpace, Some(1_795_262_400)));
}

#[tokio::test]
async fn bodies_that_are_altered_cut_or_late_are_found() {
    type Change = fn(HttpReply) -> HttpReply;
    let cases: [(Change, StoreErrorKind); 4] = [
        (|reply| reply.body("hallo"), StoreErrorKind::Altered),
        (|reply| HttpReply { cut_bytes: 2, ..reply }, StoreErrorKind::ShortBody),
        (|reply| HttpReply { stall: Duration::from_secs(60), ..reply }, StoreErrorKind::Timeout),
        (|_| HttpReply::status(503).header("Retry-After", "7"), StoreErrorKind::Throttled),
    ];
    for (change, kind) in cases {
        let server = cloud(move |request| change(hello(request))).await;
        let error = v1(&server, "planted").get(KEY, 10).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.is_retryable());
        let pause = (kind == StoreErrorKind::Throttled).then_some(7);
        assert_eq!(error.retry_after_s, pause);
    }
    // The server compares the checksum, and refuses data that was altered on its way.
    let server = cloud(|request| {
        assert_eq!(request.header("etag"), "5d41402abc4b2a76b9719d911017c592");
        HttpReply::status(422)
    })
    .await;
    let put = v1(&server, "planted").put(KEY, Bytes::from_static(b"hello"), PutMode::Overwrite).await;
    assert_eq!(put.unwrap_err().kind, StoreErrorKind::Altered);
    assert_eq!(server.seen().last().unwrap().method, "PUT");
}

#[tokio::test]
async fn identity_service_cannot_downgrade_the_token_to_http() {
    let authority = Authority::new(
        HttpOptions::default().client(true).unwrap(),
        SwiftAuth::Token { storage_url: "http://h/v1/a".into() },
        Secret::new("t".into()),
        false,
    );
    let error = authority.session(None).await.err().unwrap();
    assert!(error.to_string().contains("not https"), "{error}");
}

/// A page of a listing.
fn page(names: &[&str]) -> HttpReply {
    let listed = names
        .iter()
        .map(|name| json!({"name": name, "bytes": 5, "hash": "h", "last_modified": "2026-01-01T00:00:00"}));
    HttpReply::status(200).body(serde_json::Value::from_iter(listed).to_string())
}

#[tokio::test]
async fn pages_of_a_listing_are_concatenated() {
    let server = cloud(|request| match request.path.split("marker=").nth(1) {
        Some("") => page(&["blockd/data/a", "blockd/data/b"]),
        Some("blockd/data/b") => page(&["blockd/data/c"]),
        _ => page(&[]),
    })
    .await;
    let listed = v1(&server, "planted").list("blockd/data/").await.unwrap();
    let names: Vec<_> = listed.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(names, ["blockd/data/a", "blockd/data/b", "blockd/data/c"]);
}

/// Deletions rely on listings: a partial one is worse than none, and it must end.
#[tokio::test]
async fn listing_with_a_repeated_marker_is_an_error() {
    let again: [fn(&HttpRequest) -> HttpReply; 2] = [
        |_| page(&["blockd/data/a", "blockd/data/b"]),
        |request| match request.path.ends_with("marker=") {
            true => page(&["blockd/data/b"]),
            false => page(&["blockd/data/a"]),
        },
    ];
    for answer in again {
        let server = cloud(answer).await;
        let store = v1(&server, "planted");
        let listed = tokio::time::timeout(Duration::from_secs(120), store.list("blockd/data/")).await;
        let error = listed.expect("it has an end").unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Other);
        assert!(error.to_string().contains("do not advance"), "{error}");
    }
}

#[tokio::test]
async fn odd_name_in_a_listing_is_left_out() {
    let server = cloud(|request| match request.path.split("marker=").nth(1) {
        Some("") => page(&["blockd/data/a", "blockd/data/b c?&\u{e4}"]),
        Some("blockd/data/b%20c%3F%26%C3%A4") => page(&["blockd/data/d"]),
        _ => page(&[]),
    })
    .await;
    let listed = v1(&server, "planted").list("blockd/data/").await.unwrap();
    let names: Vec<_> = listed.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(names, ["blockd/data/a", "blockd/data/d"]);
}

#[tokio::test]
async fn old_segments_of_no_object_are_removed() {
    let uploads = [("used", 1), ("gone", 1), ("replaced", 1), ("plain", 1), ("young", 9)];
    let segment = |name: &str, no| format!("blockd-parts/blockd/data/{name}/0-1/{no:08}");
    let server = cloud(move |request| {
        let path = request.path.strip_prefix("/v1/AUTH_x/box").unwrap();
        if request.method == "DELETE" {
            return HttpReply::status(204);
        }
        let parts = |of: &str| {
            let parts = json!([{"name": format!("/box/{}", segment(of, 0))}]).to_string();
            HttpReply::status(200).header("X-Static-Large-Object", "True").body(parts)
        };
        match path.split_once('?').unwrap_or((path, "")) {
            ("", query) if query.ends_with("marker=") => {
                let listed = uploads.iter().flat_map(|(name, day)| [0, 1].map(|no| (segment(name, no), day)));
                let listed = listed.map(|(name, day)| {
                    json!({"name": name, "bytes": 5, "hash": "h", "last_modified": format!("2026-01-0{day}T00:00:00")})
                });
                HttpReply::status(200).body(serde_json::Value::from_iter(listed).to_string())
            }
            ("", _) => page(&[]),
            ("/blockd/data/used", _) => parts("used"),
            ("/blockd/data/replaced", _) => parts("another"),
            ("/blockd/data/plain", _) => HttpReply::status(200).body("plain"),
            (_, _) if request.method == "HEAD" => HttpReply::status(200),
            _ => HttpReply::status(404),
        }
    })
    .await;
    let store = v1(&server, "planted");
    let before = unix_seconds("2026-01-05T00:00:00").unwrap();
    let deleted = || -> Vec<_> {
        let seen = server.seen().into_iter().filter(|request| request.method == "DELETE");
        seen.map(|request| request.path.strip_prefix("/v1/AUTH_x/box/").unwrap().to_owned()).collect()
    };
    assert_eq!(store.remove_unfinished("blockd/data/", before, true).await.unwrap(), 6);
    assert_eq!(deleted(), [""; 0]);
    assert_eq!(store.remove_unfinished("blockd/data/", before, false).await.unwrap(), 6);
    let unused = ["gone", "replaced", "plain"];
    let expected: Vec<_> = unused.iter().flat_map(|name| [segment(name, 0), segment(name, 1)]).collect();
    assert_eq!(deleted(), expected);
}

use super::*;
use crate::{BlobStore, StoreErrorKind, backends::s3};
use blockd_store_config::Secret;
use blockd_testkit::store::{FakeHttpServer, HttpReply, HttpRequest as Seen};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicU32, Ordering};

const ARN: &str = "arn:aws:iam::123456789012:role/backup";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    assert!(key.len() <= 64, "longer ones would have to be hashed");
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks a request's signature (version 4) as the service does: by making it again.
fn check_signature(request: &Seen, service: &str, secret: &str) {
    let given = request.header("authorization");
    let part = |name: &str| {
        let (_, rest) = given.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("{given}"));
        rest.split(',').next().unwrap().to_owned()
    };
    let (names, scope) = (part("SignedHeaders"), part("Credential"));
    let scope = scope.split_once('/').unwrap().1.to_owned();
    let headers: String = names.split(';').map(|name| format!("{name}:{}\n", request.header(name))).collect();
    assert!(names.split(';').any(|name| name == "host"));
    let canonical = format!(
        "{}\n{}\n\n{headers}\n{names}\n{}",
        request.method,
        request.path,
        hex(&Sha256::digest(&request.body))
    );
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
        request.header("x-amz-date"),
        hex(&Sha256::digest(canonical))
    );
    let mut key = format!("AWS4{secret}").into_bytes();
    for piece in scope.split('/') {
        key = hmac(&key, piece.as_bytes());
    }
    assert_eq!(part("Signature"), hex(&hmac(&key, to_sign.as_bytes())));
    assert_eq!(scope.split('/').nth(2), Some(service), "{scope}");
}

fn given(number: u32, until: &str) -> HttpReply {
    HttpReply::status(200).body(format!(
        "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><AssumedRoleUser>\
         <Arn>x</Arn></AssumedRoleUser><Credentials><AccessKeyId>ASIA{number}</AccessKeyId>\
         <SecretAccessKey>secret{number}</SecretAccessKey><SessionToken>token{number}==</SessionToken>\
         <Expiration>{until}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    ))
}

fn role(endpoint: Option<String>) -> AssumedRole {
    AssumedRole { arn: ARN.into(), external_id: Some("our@customer/7".into()), endpoint }
}

fn credentials(double: &FakeHttpServer) -> RoleCredentials {
    let base = AwsCredential { key_id: "AKIABASE".into(), secret_key: SECRET.into(), token: None };
    let base = Arc::new(object_store::StaticCredentialProvider::new(base));
    let client = HttpOptions::default().client(true).unwrap();
    RoleCredentials::new(role(None), double.url(), "eu-central-1", base, client)
}

/// Gives ever new credentials that hold until an instant.
async fn service(until: &'static str) -> FakeHttpServer {
    let asked = AtomicU32::new(0);
    FakeHttpServer::start(move |_| given(asked.fetch_add(1, Ordering::SeqCst), until)).await
}

fn unix_s(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().unwrap().as_second()
}

#[tokio::test]
async fn assume_role_request_is_signed() {
    let double = service("2100-01-01T01:00:00Z").await;
    let taken = credentials(&double).get_credential().await.unwrap();
    assert_eq!((taken.key_id.as_str(), taken.token.as_deref()), ("ASIA0", Some("token0==")));
    let seen = double.seen();
    let [request] = seen.as_slice() else { panic!("{seen:?}") };
    check_signature(request, "sts", SECRET);
    let body = String::from_utf8(request.body.clone()).unwrap();
    for field in [
        "Action=AssumeRole&",
        "RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fbackup&",
        "ExternalId=our%40customer%2F7",
        "RoleSessionName=blockd&",
    ] {
        assert!(body.contains(field), "{body}");
    }
    assert!(!format!("{:?}", credentials(&double)).contains("wJalr"));
}

#[tokio::test]
async fn credentials_are_renewed_before_they_expire() {
    let double = service("2100-01-01T01:00:00Z").await;
    let role = credentials(&double);
    let at = |text| role.credential(unix_s(text));
    assert_eq!(at("2100-01-01T00:00:00Z").await.unwrap().key_id, "ASIA0");
    assert_eq!(at("2100-01-01T00:54:59Z").await.unwrap().key_id, "ASIA0");
    assert_eq!(double.seen().len(), 1);
    assert_eq!(at("2100-01-01T00:55:00Z").await.unwrap().key_id, "ASIA1");
    // Many at once ask once.
    let role = credentials(&double);
    let many = futures::future::join_all((0..8).map(|_| role.credential(0))).await;
    assert!(many.iter().all(|taken| taken.as_ref().unwrap().key_id == "ASIA2"));
}

#[tokio::test]
async fn refused_role_renewal_is_reported_and_valid_keys_are_used() {
    let asked = AtomicU32::new(0);
    let double = FakeHttpServer::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => given(0, "2100-01-01T01:00:00Z"),
        _ => HttpReply::status(403).body(
            "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>\
             <Message>User is not authorized to perform: sts:AssumeRole</Message></Error></ErrorResponse>",
        ),
    })
    .await;
    let role = credentials(&double);
    let at = |text| role.credential(unix_s(text));
    assert_eq!(at("2100-01-01T00:00:00Z").await.unwrap().key_id, "ASIA0");
    assert_eq!(at("2100-01-01T00:58:00Z").await.unwrap().key_id, "ASIA0", "they still hold");
    assert_eq!(double.seen().len(), 2);
    // No request follows at once; after a pause one does.
    assert_eq!(at("2100-01-01T00:58:29Z").await.unwrap().key_id, "ASIA0");
    assert_eq!(double.seen().len(), 2);
    assert_eq!(at("2100-01-01T00:58:30Z").await.unwrap().key_id, "ASIA0");
    assert_eq!(double.seen().len(), 3);
    let error = at("2100-01-01T00:59:55Z").await.unwrap_err();
    let (kind, _) = crate::backends::classify::classify("PUT", &error);
    assert_eq!(kind, StoreErrorKind::Unauthorized, "{error}");
}

#[tokio::test]
async fn answers_that_hold_no_credentials_are_refused() {
    let whole = String::from_utf8(given(0, "2100-01-01T01:00:00Z").body).unwrap();
    let bodies = [
        String::new(),
        "<Credentials></Credentials>".into(),
        whole.replace("2100-01-01T01:00:00Z", "soon"),
        whole.replace("token0==", "a\nb"),
        whole.replace("ASIA0", ""),
        whole.replace("token0==", &"x".repeat(MAX_RESPONSE_LEN)),
    ];
    for body in bodies {
        let double = FakeHttpServer::start(move |_| HttpReply::status(200).body(body.clone())).await;
        let error = credentials(&double).get_credential().await.unwrap_err().to_string();
        assert!(error.contains(ARN) && !error.contains("secret0"), "{error}");
    }
}

#[tokio::test]
async fn requests_use_the_credentials_of_the_assumed_role() {
    let double = FakeHttpServer::start(|request| match request.method.as_str() {
        "POST" => given(7, "2100-01-01T01:00:00Z"),
        _ => HttpReply::status(200)
            .header("ETag", "\"x\"")
            .header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
            .body("abc"),
    })
    .await;
    let mut config = s3::tests::config(&double.url());
    config.region = "eu-central-1".into();
    config.access.access_key = Some("AKIABASE".to_owned());
    config.access.secret_key = Some(Secret::new(SECRET.to_owned()).into());
    config.access.role = Some(role(None));
    let store = s3::open(&config, &HttpOptions::default()).unwrap();
    assert_eq!(store.get("a", 10).await.unwrap(), "abc");
    let seen = double.seen();
    let [asked, got] = seen.as_slice() else { panic!("{seen:?}") };
    check_signature(asked, "sts", SECRET);
    check_signature(got, "s3", "secret7");
    assert_eq!(got.header("x-amz-security-token"), "token7==");

    let refused = |role: AssumedRole| {
        let mut config = config.clone();
        config.access.role = Some(role);
        let error = s3::open(&config, &HttpOptions::default()).map(|_| ()).unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Misconfigured, "{error}");
    };
    refused(AssumedRole { arn: "backup".into(), ..role(None) });
    refused(AssumedRole { arn: format!("{ARN}&x"), ..role(None) });
    refused(AssumedRole { external_id: Some("a".into()), ..role(None) });
    refused(AssumedRole { endpoint: Some("ftp://x".into()), ..role(None) });
}

#[test]
fn amazons_services_are_those_of_the_region() {
    assert_eq!(amazon_url("eu-central-1"), "https://sts.eu-central-1.amazonaws.com");
    assert_eq!(amazon_url("cn-north-1"), "https://sts.cn-north-1.amazonaws.com.cn");
}

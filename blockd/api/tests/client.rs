//! Client against misbehaving daemons.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use blockd_api::{
    Client, ClientError, ErrorCode, MAX_BODY_BYTES, operations::*, tasks::WaitTask, volumes::CreateVolume,
};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::mpsc,
    thread,
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

/// Fake server: reads the head of each request, then follows the test's script.
struct Server {
    dir: tempfile::TempDir,
    heads: mpsc::Receiver<String>,
}

impl Server {
    fn start(answer: impl Fn(&mut UnixStream) + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let (sender, heads) = mpsc::channel();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
                // The test may have ended.
                let _ = sender.send(head);
                answer(&mut stream);
            }
        });
        Self { dir, heads }
    }

    fn saying(status: &'static str, body: &'static str) -> Self {
        Self::start(move |stream| {
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        })
    }

    fn client(&self) -> Client {
        Client::new(self.dir.path().join("s"))
    }
}

#[tokio::test]
async fn no_daemon_has_three_faces() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Client::new(dir.path().join("missing")).call(GET_STATUS, &()).await.unwrap_err();
    assert!(
        matches!(missing, ClientError::SocketMissing { .. })
            && missing.is_unreachable()
            && missing.is_retryable()
    );
    assert!(missing.to_string().contains("missing") && missing.hint().unwrap().contains("BLOCKD_SOCKET"));

    let path = dir.path().join("refused");
    drop(UnixListener::bind(&path).unwrap());
    let refused = Client::new(&path).call(GET_STATUS, &()).await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused { .. }) && refused.is_unreachable(), "{refused:?}");

    let path = dir.path().join("x".repeat(120));
    let too_long = Client::new(&path).call(GET_STATUS, &()).await.unwrap_err();
    assert!(matches!(too_long, ClientError::Connect { .. }) && too_long.is_unreachable(), "{too_long:?}");
}

#[tokio::test]
async fn requests_are_http_with_json() {
    let server = Server::saying("200 OK", r#"{"schemaVersion":1,"volumeId":"59","name":"db"}"#);
    let deleted =
        server.client().call_at(DELETE_VOLUME, &"db".parse().unwrap(), &Default::default()).await.unwrap();
    assert_eq!((deleted.volume_id.unwrap().as_u64(), deleted.name.as_deref()), (59, Some("db")));
    let head = server.heads.recv().unwrap().to_ascii_lowercase();
    assert!(
        head.starts_with("delete /v1/volumes/db http/1.1\r\n") && head.contains("host: blockd"),
        "{head}"
    );
    assert!(!head.contains("content-type"), "{head}");

    let request =
        CreateVolume { name: "db".parse().unwrap(), size_bytes: 1, labels: Default::default(), group: None };
    let _ = server.client().call(CREATE_VOLUME, &request).await;
    let head = server.heads.recv().unwrap().to_ascii_lowercase();
    assert!(head.contains("content-type: application/json") && head.contains("content-length: "), "{head}");
}

#[tokio::test(start_paused = true)]
async fn estimate_of_a_group_may_take_hours() {
    let dir = tempfile::tempdir().unwrap();
    let listener = tokio::net::UnixListener::bind(dir.path().join("s")).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
        let body = r#"{"schemaVersion":1,"items":[],"next":null}"#;
        let reply = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(reply.as_bytes()).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    });
    let client = Client::new(dir.path().join("s"));
    assert!(client.call(ESTIMATE_GROUP_BACKUP, &Default::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn daemon_errors_keep_their_code_and_hint() {
    let server =
        Server::saying("409 Conflict", r#"{"error":{"code":"volume_in_use","message":"m","hint":"h"}}"#);
    let error = server
        .client()
        .call_at(DELETE_VOLUME, &"db".parse().unwrap(), &Default::default())
        .await
        .unwrap_err();
    assert_eq!((error.to_string().as_str(), error.hint(), error.is_retryable()), ("m", Some("h"), true));
    assert!(matches!(error, ClientError::Api(error) if error.code == ErrorCode::VolumeInUse));
}

#[tokio::test]
async fn replies_of_another_kind_are_named() {
    for (status, body) in [
        ("200 OK", "no json"),
        ("200 OK", "{}"),
        ("200 OK", r#"{"schemaVersion":2,"items":[],"next":null}"#),
        ("200 OK", ""),
        ("204 No Content", ""),
        ("502 Bad Gateway", "<html>"),
        ("302 Found", "{}"),
    ] {
        let error = Server::saying(status, body).client().call(LIST_SCHEDULES, &()).await.unwrap_err();
        let code: u16 = status[..3].parse().unwrap();
        assert!(
            matches!(error, ClientError::BadReply { status, .. } if status == code),
            "{status}: {error:?}"
        );
        assert!(error.to_string().contains("GET /v1/schedules") && !error.is_unreachable(), "{error}");
    }
}

#[tokio::test]
async fn only_a_success_is_a_success() {
    for status in ["302 Found", "404 Not Found"] {
        let server = Server::saying(status, r#"{"schemaVersion":1,"volumeId":"59","name":"db"}"#);
        let error = server
            .client()
            .call_at(DELETE_VOLUME, &"db".parse().unwrap(), &Default::default())
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::BadReply { .. }), "{status}: {error:?}");
    }
}

#[tokio::test]
async fn broken_connections_are_named() {
    for cut in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-le",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{",
        "SSH-2.0-x\r\n\r\n",
    ] {
        let server = Server::start(move |stream| {
            let _ = stream.write_all(cut.as_bytes());
            let _ = stream.shutdown(std::net::Shutdown::Both);
        });
        let error = server.client().call(GET_STATUS, &()).await.unwrap_err();
        assert!(matches!(error, ClientError::Broken { .. }) && error.is_retryable(), "{cut:?}: {error:?}");
    }
}

#[tokio::test]
async fn oversized_reply_is_refused() {
    let server = Server::start(|stream| {
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n\"", MAX_BODY_BYTES * 2);
        let chunk = vec![b'x'; 1 << 20];
        while stream.write_all(&chunk).is_ok() {}
    });
    let error = server.client().call(GET_STATUS, &()).await.unwrap_err();
    assert!(error.to_string().contains("longer than 67108864 bytes"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn silent_daemon_times_out() {
    let server = Server::start(|_| {
        loop {
            thread::park();
        }
    });
    let error = server.client().call(GET_STATUS, &()).await.unwrap_err();
    assert!(matches!(&error, ClientError::Timeout { after, .. } if after.as_secs() == 60), "{error:?}");
    let server = Server::start(|_| {
        loop {
            thread::park();
        }
    });
    let wait = WaitTask { wait_millis: Some(u64::MAX), since_version: Some(1) };
    let error = server.client().call_at(GET_TASK, &Uuid::nil(), &wait).await.unwrap_err();
    assert!(matches!(&error, ClientError::Timeout { after, .. } if after.as_secs() == 120), "{error:?}");
}

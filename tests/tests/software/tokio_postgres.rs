//! tokio-postgres, unmodified, over byte streams of ours, against a real PostgreSQL. No runtime of tokio is
//! there: ringpost runs its connections.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use ringpost::{ByteStream, EngineChoice, JoinHandle, spawn, stats};
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{block_on, poll_at_most};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Config, Error, NoTls, SimpleQueryMessage};

use crate::postgres::{DATABASE, Server, USER};

on_both_engines!(
    parameters_of_every_size,
    many_queries_on_the_way,
    dropped_queries,
    transactions,
    copied_in_and_out,
    a_copy_that_nobody_reads,
    a_query_is_cancelled,
    sixty_four_connections,
    notifications,
    a_session_is_terminated,
    the_server_ends
);

type Session = JoinHandle<Result<(), Error>>;

/// A client, and its connection in a task of ours.
async fn connect(server: &Server) -> (Client, Session) {
    let stream = ByteStream::connect(server.socket()).await.expect("the server listens");
    let (client, connection) =
        config().connect_raw(stream, NoTls).await.expect("the server lets us in");
    (client, spawn(connection))
}

fn config() -> Config {
    let mut config = Config::new();
    config.user(USER).dbname(DATABASE).application_name("ringpost");
    config
}

/// Ends a session as programs do: by dropping the client.
async fn end(client: Client, session: Session) {
    drop(client);
    session.await.expect("no panic").expect("a proper end");
}

/// Runs `body` with the server that the tests share, if there is one.
fn with_server<F: Future>(test: &str, engine: EngineChoice, body: impl FnOnce(Arc<Server>) -> F) {
    if let Some(server) = Server::shared(test) {
        block_on(engine, body(server));
    }
}

/// Lets the runtime turn until `condition` holds; the end of the test bounds it.
async fn eventually(mut condition: impl FnMut() -> bool) {
    while !condition() {
        ringpost::sleep(Duration::from_millis(1)).await;
    }
}

fn parameters_of_every_size(engine: EngineChoice) {
    const AROUND: [usize; 5] = [0, 1000, 8192, 65_536, 262_144];
    with_server("tokio_postgres::parameters_of_every_size", engine, async |server| {
        let (client, session) = connect(&server).await;
        let statement = client
            .prepare_typed("select $1::bytea, length($1), $2::int8", &[Type::BYTEA, Type::INT8])
            .await
            .expect("valid");
        let sizes = AROUND.into_iter().flat_map(|size: usize| {
            [size.saturating_sub(40), size.saturating_sub(1), size, size + 1, size + 40]
        });
        for (number, size) in (0..).zip(sizes.chain([3 << 20])) {
            let body = pattern::payload(number, size);
            let id = i64::try_from(number).expect("small");
            let row = client.query_one(&statement, &[&body, &id]).await.expect("valid");
            pattern::check(number, size, row.get(0));
            assert_eq!(usize::try_from(row.get::<_, i32>(1)), Ok(size));
            assert_eq!(row.get::<_, i64>(2), id);
        }
        drop(statement);
        end(client, session).await;
    });
}

/// Queries are sent without waiting for the answers to earlier ones.
fn many_queries_on_the_way(engine: EngineChoice) {
    with_server("tokio_postgres::many_queries_on_the_way", engine, async |server| {
        let (client, session) = connect(&server).await;
        let statement =
            client.prepare("select $1::int4 * 2, repeat('x', $1)").await.expect("valid");
        let queries = (0..2000).map(async |number: i32| {
            let row = client.query_one(&statement, &[&number]).await?;
            assert_eq!(row.get::<_, i32>(0), 2 * number);
            assert_eq!(i32::try_from(row.get::<_, &str>(1).len()), Ok(number));
            Ok::<(), Error>(())
        });
        try_join_all(queries).await.expect("valid");
        drop(statement);
        end(client, session).await;
    });
}

fn dropped_queries(engine: EngineChoice) {
    with_server("tokio_postgres::dropped_queries", engine, async |server| {
        let (client, session) = connect(&server).await;
        let mut random = fastrand::Rng::with_seed(1);
        for number in 0..300_i64 {
            let query = client.query("select repeat('y', 5000) from generate_series(1, 50)", &[]);
            let rows = poll_at_most(random.u32(..6), query).await;
            assert!(rows.is_none_or(|rows| rows.is_ok_and(|rows| rows.len() == 50)));
            let row = client.query_one("select $1::int8", &[&number]).await.expect("valid");
            assert_eq!(row.get::<_, i64>(0), number, "the answer to this query");
        }
        end(client, session).await;
    });
}

fn transactions(engine: EngineChoice) {
    with_server("tokio_postgres::transactions", engine, async |server| {
        let (mut client, session) = connect(&server).await;
        client
            .batch_execute("create temporary table t (id int primary key, body bytea)")
            .await
            .expect("valid");
        for (number, commit) in [(0, true), (1, false), (2, true)] {
            let mut transaction = client.transaction().await.expect("valid");
            let body = pattern::payload(7, 100_000);
            let insert = "insert into t values ($1, $2)";
            transaction.execute(insert, &[&number, &body]).await.expect("valid");
            let savepoint = transaction.transaction().await.expect("valid");
            let double = savepoint.execute(insert, &[&number, &body]).await;
            let double = double.expect_err("the key is there");
            assert_eq!(double.code(), Some(&SqlState::UNIQUE_VIOLATION));
            savepoint.rollback().await.expect("valid");
            if commit {
                transaction.commit().await.expect("valid");
            }
            // Dropped otherwise, which rolls it back.
        }
        let rows = client.query("select id, body from t order by id", &[]).await.expect("valid");
        let ids: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(ids, [0, 2]);
        for row in rows {
            pattern::check(7, 100_000, row.get(1));
        }
        end(client, session).await;
    });
}

/// Lines of a table of that many rows, in COPY's text format, in pieces that are no lines.
fn lines(rows: u32) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(2);
    let mut bytes = Vec::new();
    for id in 0..rows {
        let body: String = (0..random.usize(..400)).map(|_| random.alphanumeric()).collect();
        bytes.extend_from_slice(format!("{id}\t{body}\n").as_bytes());
    }
    bytes
}

fn copied_in_and_out(engine: EngineChoice) {
    const ROWS: u32 = 60_000;
    with_server("tokio_postgres::copied_in_and_out", engine, async |server| {
        let (client, session) = connect(&server).await;
        client.batch_execute("create temporary table t (id int, body text)").await.expect("valid");
        let sent = lines(ROWS);
        assert!(sent.len() > 8 << 20, "several MiB");
        let sink = client.copy_in("copy t from stdin").await.expect("valid");
        let mut sink = pin!(sink);
        let mut random = fastrand::Rng::with_seed(3);
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(rest.len().min(random.usize(1..150_000)));
            sink.send(Bytes::copy_from_slice(piece)).await.expect("the server reads");
            rest = behind;
        }
        assert_eq!(sink.finish().await.expect("all of it"), u64::from(ROWS));

        let copy = client.copy_out("copy (select * from t order by id) to stdout").await;
        let copy = copy.expect("valid");
        let received: Vec<Bytes> = copy.try_collect().await.expect("all of it");
        assert!(received.concat() == sent, "what comes back is what was sent");

        // One that is given up leaves the session as it was.
        let sink = client.copy_in("copy t from stdin").await.expect("valid");
        let mut sink = Box::pin(sink);
        sink.send(Bytes::copy_from_slice(&sent[..1000])).await.expect("the server reads");
        drop(sink);
        let row = client.query_one("select count(*) from t", &[]).await.expect("valid");
        assert_eq!(row.get::<_, i64>(0), i64::from(ROWS));
        end(client, session).await;
    });
}

/// The server has to wait, and what was received stays within the bounds.
fn a_copy_that_nobody_reads(engine: EngineChoice) {
    const ROWS: usize = 60_000;
    with_server("tokio_postgres::a_copy_that_nobody_reads", engine, async |server| {
        let (client, session) = connect(&server).await;
        let query =
            format!("copy (select repeat('z', 999) from generate_series(1, {ROWS})) to stdout");
        let copy = client.copy_out(&query).await.expect("valid");
        eventually(|| stats().receives_paused > 0).await;
        let (other, other_session) = connect(&server).await;
        for _ in 0..50 {
            other.query_one("select 1", &[]).await.expect("others are served");
        }
        let received = stats().bytes_received;
        assert!(received < 8 << 20, "{received} bytes were received for nobody");
        let mut copy = pin!(copy);
        let mut len = 0;
        while let Some(piece) = copy.next().await {
            let piece = piece.expect("all of it");
            assert!(piece.iter().all(|byte| b"z\n".contains(byte)));
            len += piece.len();
        }
        assert_eq!(len, ROWS * 1000);
        end(other, other_session).await;
        end(client, session).await;
    });
}

fn a_query_is_cancelled(engine: EngineChoice) {
    with_server("tokio_postgres::a_query_is_cancelled", engine, async |server| {
        let (client, session) = connect(&server).await;
        let token = client.cancel_token();
        let client = Rc::new(client);
        let sleeper = Rc::clone(&client);
        let sleeping =
            spawn(async move { sleeper.query("select pg_sleep(600), 'cancel me'", &[]).await });
        let (other, other_session) = connect(&server).await;
        let pid =
            "select pid from pg_stat_activity where state = 'active' and wait_event = 'PgSleep'";
        while other.query(pid, &[]).await.expect("valid").is_empty() {}
        assert!(!sleeping.is_finished());

        let stream = ByteStream::connect(server.socket()).await.expect("the server listens");
        token.cancel_query_raw(stream, NoTls).await.expect("the server takes it");
        let error = sleeping.await.expect("no panic").expect_err("cancelled");
        assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{error}");
        client.query_one("select 1", &[]).await.expect("the session goes on");
        end(other, other_session).await;
        end(Rc::into_inner(client).expect("the sleeper is gone"), session).await;
    });
}

fn sixty_four_connections(engine: EngineChoice) {
    const CONNECTIONS: i32 = 64;
    const QUERIES: i32 = 50;
    with_server("tokio_postgres::sixty_four_connections", engine, async |server| {
        let connections = (0..CONNECTIONS).map(|_| connect(&server));
        let sessions = futures_util::future::join_all(connections).await;
        let tasks: Vec<_> = (0..)
            .zip(sessions)
            .map(|(number, (client, session)): (i32, _)| {
                spawn(async move {
                    let query = "select $1::int4 + $2::int4, pg_backend_pid(), $3::bytea";
                    let statement = client.prepare(query).await.expect("valid");
                    let mut pid = None;
                    for round in 0..QUERIES {
                        let len = usize::try_from(number * round).expect("small");
                        let body = pattern::payload(9, len);
                        let row = client
                            .query_one(&statement, &[&number, &round, &body])
                            .await
                            .expect("valid");
                        assert_eq!(row.get::<_, i32>(0), number + round);
                        let own: i32 = row.get(1);
                        assert_eq!(*pid.get_or_insert(own), own, "answers come from one server");
                        pattern::check(9, len, row.get(2));
                    }
                    drop(statement);
                    end(client, session).await;
                    pid.expect("some rounds")
                })
            })
            .collect();
        let mut pids = Vec::new();
        for task in tasks {
            pids.push(task.await.expect("no panic"));
        }
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(i32::try_from(pids.len()), Ok(CONNECTIONS), "each has its own");
    });
}

/// The server speaks without being asked.
fn notifications(engine: EngineChoice) {
    with_server("tokio_postgres::notifications", engine, async |server| {
        let stream = ByteStream::connect(server.socket()).await.expect("the server listens");
        let (listener, mut connection) =
            config().connect_raw(stream, NoTls).await.expect("the server lets us in");
        let heard = Rc::new(RefCell::new(Vec::new()));
        let notes = Rc::clone(&heard);
        let session = spawn(poll_fn(move |context| {
            while let Poll::Ready(message) = connection.poll_message(context) {
                match message {
                    Some(Ok(AsyncMessage::Notification(note))) => {
                        notes.borrow_mut().push(note.payload().to_owned());
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => return Poll::Ready(Ok(())),
                }
            }
            Poll::Pending
        }));
        // The tests of the other engine may use the same server.
        let channel = format!("news_{engine:?}").to_lowercase();
        listener.batch_execute(&format!("listen {channel}")).await.expect("valid");
        let (client, client_session) = connect(&server).await;
        let mut expected = Vec::new();
        for number in 0..100 {
            let text = format!("{number} {}", "n".repeat(7000 * number / 100));
            client.query("select pg_notify($1, $2)", &[&channel, &text]).await.expect("valid");
            expected.push(text);
        }
        eventually(|| heard.borrow().len() == expected.len()).await;
        assert_eq!(*heard.borrow(), expected);
        end(client, client_session).await;
        end(listener, session).await;
    });
}

fn a_session_is_terminated(engine: EngineChoice) {
    with_server("tokio_postgres::a_session_is_terminated", engine, async |server| {
        let (client, session) = connect(&server).await;
        let (other, other_session) = connect(&server).await;
        let pid = client.query_one("select pg_backend_pid()", &[]).await.expect("valid");
        let pid: i32 = pid.get(0);
        other.query("select pg_terminate_backend($1)", &[&pid]).await.expect("valid");
        let end_of_session = session.await.expect("no panic").expect_err("no proper end");
        assert_eq!(end_of_session.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{end_of_session}");
        let refused = client.query("select 1", &[]).await.expect_err("it is over");
        assert!(refused.is_closed(), "{refused}");
        other.query_one("select 1", &[]).await.expect("others go on");
        end(other, other_session).await;
    });
}

/// A server that ends with sessions open, one of them with a query under way.
fn the_server_ends(engine: EngineChoice) {
    let test = "tokio_postgres::the_server_ends";
    let Some(server) = Server::start(test, &[]) else { return };
    block_on(engine, async {
        let (idle, idle_session) = connect(&server).await;
        let (busy, busy_session) = connect(&server).await;
        let sleeping = spawn(async move { busy.query("select pg_sleep(600)", &[]).await });
        let query = "select 1 from pg_stat_activity where wait_event = 'PgSleep'";
        let asleep = async || {
            let found = idle.simple_query(query).await.expect("valid");
            found.iter().any(|message| matches!(message, SimpleQueryMessage::Row(_)))
        };
        while !asleep().await {}
        let socket = server.socket();
        // Ends it, and waits for that: all that the sessions are told is in their sockets then.
        drop(server);
        let error = idle_session.await.expect("no panic").expect_err("no proper end");
        assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{error}");
        // Here the reason is the answer to the query.
        let error = sleeping.await.expect("no panic").expect_err("no result");
        assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{error}");
        let _ = busy_session.await.expect("no panic");
        assert!(idle.is_closed());
        let error = ByteStream::connect(&socket).await.expect_err("nobody listens");
        assert!(error.to_string().contains(".s.PGSQL."), "{error}");
    });
}

//! Redis: `redis-cli` and `redis-benchmark` over the forwarder get what they get from the server itself.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use ringpost::EngineChoice;
use ringpost_testkit::patience::eventually;
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::software::client::{self, Client, Outcome, assert_same};
use ringpost_tests::software::example::Forwarder;
use ringpost_tests::software::programs::{self, Needed};
use ringpost_tests::software::service::{Home, Service};
use rustix::process::Signal;

on_both_engines!(same_answers, pipelines, big_values, subscribers, a_killed_client, benchmark);

const NEEDED: &[Needed] = &[
    Needed { program: "redis-server", package: "redis-server" },
    Needed { program: "redis-cli", package: "redis-tools" },
    Needed { program: "redis-benchmark", package: "redis-tools" },
];

/// Longest wait for something that the server does by itself.
const LIMIT: Duration = Duration::from_secs(15);

/// A server, and the forwarder in front of it.
struct Redis {
    // Dropped in this order: the server before its directory.
    forwarder: Forwarder,
    _service: Service,
    socket: PathBuf,
    _home: Home,
}

impl Redis {
    fn start(test: &str, engine: EngineChoice) -> Option<Self> {
        if !programs::here_or_skip(test, NEEDED) {
            return None;
        }
        let home = Home::new();
        let socket = home.join("redis.sock");
        let mut command = home.command(&programs::path("redis-server"));
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
        command.arg(&socket).arg("--dir").arg(home.path());
        let answers = || cli(&socket, &["PING"], "").output == b"PONG\n";
        let service = Service::start(&mut command, home.join("log"), answers);
        let forwarder = Forwarder::start(engine, &socket);
        Some(Self { forwarder, _service: service, socket, _home: home })
    }

    /// One after the other: the server itself and the forwarder.
    fn both(&self) -> [&Path; 2] {
        [&self.socket, self.forwarder.path()]
    }

    /// A word that the server itself answers.
    fn ask(&self, words: &[&str]) -> String {
        cli(&self.socket, words, "").successful().trim_end().to_owned()
    }

    /// Clients that the server has, without the one that asks.
    fn clients(&self) -> usize {
        self.ask(&["CLIENT", "LIST"]).lines().count() - 1
    }
}

/// What `redis-cli` says.
fn cli(socket: &Path, words: &[&str], input: impl Into<Vec<u8>>) -> Outcome {
    client::run(Command::new("redis-cli").arg("-s").arg(socket).args(words), input)
}

/// Sets bounds to the waits of a plain socket.
fn plain(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("a server listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
    stream.set_write_timeout(Some(LIMIT)).expect("a socket");
    stream
}

/// Commands whose answers are always the same.
const SCRIPT: &str = r#"FLUSHALL
SET greeting "hello \x00\xff world"
GET greeting
STRLEN greeting
GET missing
INCR greeting
NO SUCH COMMAND
SET too many words here
LPUSH list a b c d e f
LRANGE list 0 -1
HSET hash one 1 two 2 three ""
HMGET hash three two one none
ZADD sorted 1.5 low 3e10 high -inf lowest
ZRANGE sorted 0 -1 WITHSCORES
MULTI
INCR counter
INCRBYFLOAT counter 2.5
LPOP counter
EXEC
MULTI
INCR counter
DISCARD
EVAL "local t = {} for i = 1, 1000 do t[i] = i end return t" 0
EVAL "return redis.error_reply('MY own error')" 0
SETRANGE sparse 100000 x
GETRANGE sparse 99990 -1
SCAN 0 COUNT 1000
DEBUG JMAP
OBJECT ENCODING list
XADD stream 1-1 field value
XRANGE stream - +
ECHO "last"
"#;

fn same_answers(engine: EngineChoice) {
    let Some(redis) = Redis::start("redis::same_answers", engine) else { return };
    for flags in [&["--raw"][..], &["--no-raw"], &["--csv"], &["--json"], &["-3"]] {
        let [direct, forwarded] = redis.both().map(|socket| cli(socket, flags, SCRIPT));
        assert_same(&flags.join(" "), &direct, &forwarded);
        assert!(direct.contains("last") && direct.contains("MY own error"), "{direct}");
    }
    redis.forwarder.stop();
}

/// Commands in RESP, and their answers; no command waits for the answer before it.
fn pipelines(engine: EngineChoice) {
    const COMMANDS: usize = 50_000;
    let Some(redis) = Redis::start("redis::pipelines", engine) else { return };
    // What redis-cli itself does to load a data set.
    let mut load = Vec::new();
    for index in 0..COMMANDS {
        let (key, value) = (format!("key:{index}"), format!("{index:x}").repeat(index % 40));
        let set = ["SET", &key, &value];
        load.extend(resp(&set.map(str::as_bytes)));
    }
    let [direct, forwarded] = redis.both().map(|socket| cli(socket, &["--pipe"], load.clone()));
    assert_same("--pipe", &direct, &forwarded);
    assert!(
        direct.successful().ends_with(&format!("errors: 0, replies: {COMMANDS}\n")),
        "{direct}"
    );

    // The same by hand, cut anywhere, and with answers that are longer than the questions.
    let mut questions = Vec::new();
    for index in (0..COMMANDS).step_by(7) {
        questions.extend(resp(&[b"GET", format!("key:{index}").as_bytes()]));
        questions.extend(resp(&[b"MGET", b"key:39", format!("key:{}", index + 1).as_bytes()]));
    }
    questions.extend(resp(&[b"QUIT"]));
    let mut random = fastrand::Rng::with_seed(7);
    let answers = redis.both().map(|socket| {
        let stream = plain(socket);
        let mut reading = stream.try_clone().expect("a descriptor");
        let reader = thread::spawn(move || {
            let mut answers = Vec::new();
            reading.read_to_end(&mut answers).expect("answers and an end");
            answers
        });
        let mut rest = &questions[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(random.usize(1..=rest.len().min(9000)));
            (&stream).write_all(part).expect("the server reads");
            rest = after;
        }
        reader.join().expect("answers")
    });
    assert!(answers[0].ends_with(b"+OK\r\n"));
    assert!(answers[0] == answers[1], "{} and {} bytes", answers[0].len(), answers[1].len());
    redis.forwarder.stop();
}

fn resp(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).into_bytes());
        bytes.extend(*word);
        bytes.extend(b"\r\n");
    }
    bytes
}

fn big_values(engine: EngineChoice) {
    let Some(redis) = Redis::start("redis::big_values", engine) else { return };
    let [_, forwarded] = redis.both();
    for (sequence, len) in [(1, 1), (2, 65_536), (3, 5 << 20), (4, 24 << 20)] {
        let value = pattern::payload(sequence, len);
        let set = cli(forwarded, &["-x", "SET", "big"], value.clone());
        assert_eq!(set.successful(), "OK\n");
        assert_eq!(redis.ask(&["STRLEN", "big"]), len.to_string());
        for socket in redis.both() {
            let got = cli(socket, &["--raw", "GET", "big"], "");
            assert!(got.status.success(), "{got}");
            let (body, end) = got.output.split_at(got.output.len() - 1);
            assert_eq!(end, b"\n");
            pattern::check(sequence, len, body);
        }
    }
    redis.forwarder.stop();
}

/// What the server sends unasked arrives at each of many subscribers, in order.
fn subscribers(engine: EngineChoice) {
    const SUBSCRIBERS: usize = 100;
    const MESSAGES: usize = 300;
    let Some(redis) = Redis::start("redis::subscribers", engine) else { return };
    let [direct, forwarded] = redis.both();
    let mut streams: Vec<UnixStream> = (0..SUBSCRIBERS).map(|_| plain(forwarded)).collect();
    for stream in &mut streams {
        stream.write_all(&resp(&[b"SUBSCRIBE", b"news"])).expect("the server reads");
    }
    eventually("all subscribe", LIMIT, || {
        redis.ask(&["PUBSUB", "NUMSUB", "news"]).lines().last() == Some(&SUBSCRIBERS.to_string())
    });
    let bodies: Vec<String> = (0..MESSAGES).map(|index| format!("message {index}")).collect();
    let mut publish = String::new();
    let mut expected = b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n".to_vec();
    for body in &bodies {
        publish += &format!("PUBLISH news \"{body}\"\n");
        expected.extend(resp(&[b"message", b"news", body.as_bytes()]));
    }
    let published = cli(direct, &[], publish);
    let all = format!("{SUBSCRIBERS}\n").repeat(MESSAGES);
    assert_eq!(published.successful(), all);
    for stream in &mut streams {
        let mut received = vec![0; expected.len()];
        stream.read_exact(&mut received).expect("all messages");
        assert!(received == expected, "{}", String::from_utf8_lossy(&received));
    }
    drop(streams);
    eventually("all are gone", LIMIT, || redis.clients() == 0);
    redis.forwarder.stop();
}

/// A client that is killed while it waits, or while it sends or takes megabytes, is gone for the server
/// too, and others go on.
fn a_killed_client(engine: EngineChoice) {
    let Some(redis) = Redis::start("redis::a_killed_client", engine) else { return };
    let [_, forwarded] = redis.both();
    let mut waiting = Command::new("redis-cli");
    waiting.arg("-s").arg(forwarded).args(["BLPOP", "nothing", "0"]);
    let waiting = Client::start(&mut waiting, "");
    eventually("it waits", LIMIT, || redis.ask(&["CLIENT", "LIST"]).contains("cmd=blpop"));
    waiting.signal(Signal::KILL);
    assert!(!waiting.finish().status.success());
    eventually("the server knows", LIMIT, || redis.clients() == 0);

    assert_eq!(redis.ask(&["SETRANGE", "large", "30000000", "x"]), "30000001");
    let mut stream = plain(forwarded);
    // More than all buffers on the way hold: the server, or the forwarder, is stuck with it.
    for _ in 0..4 {
        stream.write_all(&resp(&[b"GET", b"large"])).expect("the server reads");
    }
    let mut some = [0; 100_000];
    stream.read_exact(&mut some).expect("an answer");
    drop(stream);
    eventually("the server knows", LIMIT, || redis.clients() == 0);

    let mut stream = plain(forwarded);
    stream.write_all(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$5000000\r\n").expect("the server reads");
    stream.write_all(&[7; 100_000]).expect("the server reads");
    drop(stream);
    eventually("the server knows", LIMIT, || redis.clients() == 0);
    assert_eq!(redis.ask(&["EXISTS", "half"]), "0");
    assert_eq!(cli(forwarded, &["STRLEN", "large"], "").successful(), "30000001\n");
    redis.forwarder.stop();
}

/// Redis's own load generator, with many connections and deep pipelines.
fn benchmark(engine: EngineChoice) {
    let Some(redis) = Redis::start("redis::benchmark", engine) else { return };
    let [_, forwarded] = redis.both();
    for [connections, requests, depth, bytes] in
        [["200", "5000", "1", "3"], ["50", "20000", "64", "100"], ["20", "500", "4", "70000"]]
    {
        assert_eq!(redis.ask(&["CONFIG", "RESETSTAT"]), "OK");
        let mut command = Command::new("redis-benchmark");
        command.arg("-s").arg(forwarded).args(["-t", "set,get,lpush,mset", "--csv"]);
        command.args(["-c", connections, "-n", requests, "-P", depth, "-d", bytes]);
        let outcome = client::run(&mut command, "");
        assert_eq!(outcome.successful().lines().count(), 5, "{outcome}");
        let stats = redis.ask(&["INFO", "commandstats"]);
        for word in ["set", "get", "lpush", "mset"] {
            // As many as were asked for, and up to a pipeline more of each connection.
            let asked: u64 = requests.parse().expect("a number");
            assert!(count(&stats, word, "calls") >= asked, "{word}, {asked}\n{stats}");
            assert_eq!(count(&stats, word, "failed_calls"), 0, "{word}\n{stats}");
            assert_eq!(count(&stats, word, "rejected_calls"), 0, "{word}\n{stats}");
        }
        eventually("all are gone", LIMIT, || redis.clients() == 0);
    }
    redis.forwarder.stop();
}

/// A number that the server keeps of a command.
fn count(stats: &str, command: &str, what: &str) -> u64 {
    let start = format!("cmdstat_{command}:");
    let line = stats.lines().find_map(|line| line.strip_prefix(&start)).expect("it was used");
    let of_name = |field: &str| field.strip_prefix(what)?.strip_prefix('=')?.parse().ok();
    line.split(',').find_map(of_name).expect("a number")
}

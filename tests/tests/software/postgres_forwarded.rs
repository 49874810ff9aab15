//! PostgreSQL: `psql` and `pgbench` over the forwarder get what they get from the server itself.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ringpost::EngineChoice;
use ringpost_testkit::patience::eventually;
use ringpost_tests::on_both_engines;
use ringpost_tests::software::client::{self, Client, Outcome, assert_same};
use ringpost_tests::software::example::Forwarder;
use rustix::process::Signal;

use crate::postgres::Server;

on_both_engines!(
    same_answers,
    copies,
    large_results,
    interrupted_statements,
    killed_clients,
    many_clients
);

/// Longest wait for something that the server does by itself.
const LIMIT: Duration = Duration::from_secs(15);

/// A server, the forwarder in front of it, and databases that no other test uses.
struct Postgres<S> {
    server: S,
    forwarder: Forwarder,
    database: String,
}

impl<S: AsRef<Server>> Postgres<S> {
    fn new(server: S, test: &str, engine: EngineChoice) -> Self {
        let forwarder = Forwarder::start(engine, &server.as_ref().socket());
        let database = format!("{test}_{engine:?}").to_lowercase();
        let this = Self { server, forwarder, database };
        this.fresh();
        this
    }

    /// Makes the database anew.
    fn fresh(&self) {
        for statement in ["drop database if exists", "create database"] {
            self.ask("postgres", &format!("{statement} {}", self.database));
        }
    }

    /// One after the other: the directories of the server's socket and of the forwarder's.
    fn both(&self) -> [&Path; 2] {
        [self.server.as_ref().directory(), self.forwarder.directory()]
    }

    fn psql(&self, host: &Path) -> Command {
        let mut psql = self.server.as_ref().program("psql", host);
        psql.args(["--no-psqlrc", "--no-align", "--dbname", &self.database]);
        psql
    }

    /// What the server itself answers to a statement.
    #[track_caller]
    fn ask(&self, database: &str, statement: &str) -> String {
        let mut psql = self.psql(self.server.as_ref().directory());
        psql.args(["--tuples-only", "--quiet", "--dbname", database, "--command", statement]);
        client::run(&mut psql, "").successful().trim_end().to_owned()
    }

    /// Runs a script twice, directly and over the forwarder, each in a fresh database, and checks that
    /// the answers are the same.
    #[track_caller]
    fn same(&self, flags: &[&str], script: &str) -> Outcome {
        let [direct, forwarded] = self.both().map(|host| {
            self.fresh();
            let outcome = client::run(self.psql(host).args(flags), script);
            outcome.with_errors_about(host.to_str().expect("ASCII"), "directory")
        });
        assert_same(&flags.join(" "), &direct, &forwarded);
        direct
    }

    /// The server's connections to the database.
    fn connections(&self) -> String {
        let count = "select count(*) from pg_stat_activity where datname";
        self.ask("postgres", &format!("{count} = '{}'", self.database))
    }

    /// Waits until the server performs a statement that contains `part`.
    #[track_caller]
    fn await_statement(&self, part: &str) {
        let count = format!(
            "select count(*) from pg_stat_activity
            where datname = '{}' and state = 'active' and query like '%{part}%'",
            self.database
        );
        eventually(part, LIMIT, || self.ask("postgres", &count) == "1");
    }
}

const SCRIPT: &str = r#"
\set VERBOSITY verbose
create table person (id serial primary key, name text unique, born date, photo bytea);
insert into person (name, born) values ('Ada', '1815-12-10'), ('Grace', '1906-12-09'), ('이름', null)
    returning id, name;
select * from person order by id;
insert into person (name) values ('Ada');
selec 1;
select * from nowhere;
select 1/0;
select 0.1 + 0.2, 1e300::float8 * 1e8, 'NaN'::numeric, null, '{1,{2}}'::text;
update person set photo = '\x00ff0a275c' where id = 1;
select id, photo from person order by id;
prepare find (int, int) as select name from person where id between $1 and $2 order by id;
execute find(1, 2);
execute find(3, 9);
execute find('x', 9);
deallocate find;
execute find(1, 2);
begin;
delete from person;
select count(*) from person;
savepoint here;
select broken;
rollback to here;
select count(*) from person;
rollback;
select count(*) from person;
do $$ begin
    for i in 1..50 loop raise notice 'notice % %', i, repeat('*', i); end loop;
    raise exception 'an error of our own' using hint = 'a hint', detail = 'a detail', errcode = 'RP001';
end $$;
begin;
declare c cursor for select * from generate_series(1, 1000);
fetch 5 from c;
move forward 900 in c;
fetch all from c;
commit;
select 'select ' || i || ' as generated' from generate_series(1, 20) i
\gexec
\set FETCH_COUNT 7
select i, i * i from generate_series(1, 50) i;
\unset FETCH_COUNT
select i, md5(i::text), case when i % 3 = 0 then null else i end from generate_series(1, 300) i;
\d person
\df pg_catalog.abs
select 1 \; select 2 \; select 3;
\echo last
select pg_terminate_backend(pg_backend_pid());
\echo not reached
"#;

fn same_answers(engine: EngineChoice) {
    let test = "postgres_forwarded::same_answers";
    let Some(server) = Server::shared(test) else { return };
    let postgres = Postgres::new(server, "same_answers", engine);
    let flags: [&[&str]; 4] = [
        &[],
        &["--expanded", "--tuples-only"],
        &["--csv", "--echo-all"],
        &["--single-transaction"],
    ];
    for flags in flags {
        let direct = postgres.same(flags, SCRIPT);
        assert!(direct.contains("Grace") && direct.contains("last"), "{direct}");
        // The connection was lost, on purpose.
        assert!(!direct.contains("not reached"), "{direct}");
        assert_eq!(direct.status.code(), Some(2), "{direct}");
        assert!(String::from_utf8_lossy(&direct.errors).contains("RP001"), "{direct}");
    }
    let direct = postgres.same(&["--set", "ON_ERROR_STOP=1"], SCRIPT);
    assert_eq!(direct.status.code(), Some(3), "{direct}");
    let direct = postgres.same(&["--dbname", "no_such_database"], SCRIPT);
    assert_eq!(direct.status.code(), Some(2), "{direct}");
    postgres.forwarder.stop();
}

/// COPY in both directions, several MiB each, in both formats, and with an error at the very end.
fn copies(engine: EngineChoice) {
    let test = "postgres_forwarded::copies";
    let Some(server) = Server::shared(test) else { return };
    let postgres = Postgres::new(server, "copies", engine);
    let rows = "select i, md5(i::text), null, repeat('x', i % 97) from generate_series(1, 70000) i";
    for format in ["text", "csv", "binary"] {
        let out = format!("copy ({rows}) to stdout (format {format});");
        let direct = postgres.same(&[], &out);
        assert!(direct.status.success() && direct.output.len() > 5 << 20, "{direct}");
    }

    let table = "create table t (id int, name text, nothing int, padding text);\n";
    let mut text = String::new();
    for row in 1..=70_000 {
        text += &format!("{row}\tname {row}\t\\N\t{}\n", "x".repeat(row % 97));
    }
    let sums = "select count(*), sum(id), sum(length(name)), count(nothing), sum(length(padding)),
        md5(string_agg(padding, '' order by id)) from t;\n";
    let copy = "copy t from stdin;\n";
    let direct = postgres.same(&[], &format!("{table}{copy}{text}\\.\n{sums}"));
    assert!(direct.status.success() && direct.contains("70000|2450035000|"), "{direct}");
    // The server refuses the last row, with all the others sent.
    let script = format!("{table}{copy}{text}not a number\tx\t\\N\tx\n\\.\n{sums}");
    let direct = postgres.same(&[], &script);
    assert!(direct.contains("0||"), "{direct}");

    // From one server process into another, all of it through the forwarder.
    let [direct, forwarded] = postgres.both();
    let binary = |host| {
        let out = format!("copy ({rows}) to stdout (format binary)");
        client::run(postgres.psql(host).args(["--command", &out]), "").output
    };
    let data = binary(direct);
    postgres.fresh();
    postgres.ask(&postgres.database, table);
    let into = "copy t from stdin (format binary)";
    let copied = client::run(postgres.psql(forwarded).args(["--command", into]), data.clone());
    assert_eq!(copied.successful(), "COPY 70000\n");
    let back = "copy (select * from t order by id) to stdout (format binary)";
    let back = client::run(postgres.psql(forwarded).args(["--command", back]), "");
    assert!(back.output == data, "{} of {} bytes", back.output.len(), data.len());
    postgres.forwarder.stop();
}

fn large_results(engine: EngineChoice) {
    let test = "postgres_forwarded::large_results";
    let Some(server) = Server::shared(test) else { return };
    let postgres = Postgres::new(server, "large_results", engine);
    let many = "select i, md5(i::text), repeat('y', i % 200) from generate_series(1, 40000) i;";
    for flags in [&[][..], &["--variable", "FETCH_COUNT=1000"]] {
        let direct = postgres.same(flags, many);
        assert!(direct.status.success() && direct.output.len() > 5 << 20, "{direct}");
    }
    let one = postgres.same(&["--tuples-only"], "select repeat('abcdefgh', 3 << 20);");
    assert_eq!((one.status.success(), one.output.len()), (true, (24 << 20) + 1));
    // As long in the other direction.
    let statement = format!("select length('{}'), md5('{0}');", "z".repeat(4 << 20));
    let one = postgres.same(&["--tuples-only"], &statement);
    assert!(one.status.success() && one.contains(&(4 << 20).to_string()), "{one}");
    postgres.forwarder.stop();
}

/// What ctrl-C does: the client asks for it over a second connection, with a key that the server gave
/// it over the first.
fn interrupted_statements(engine: EngineChoice) {
    let test = "postgres_forwarded::interrupted_statements";
    let Some(server) = Server::shared(test) else { return };
    let postgres = Postgres::new(server, "interrupted", engine);
    let [direct, forwarded] = postgres.both().map(|host| {
        let script = "select 'before';\nselect pg_sleep(1000);\nselect 'after';\n";
        let client = Client::start(&mut postgres.psql(host), script);
        postgres.await_statement("pg_sleep(1000)");
        client.signal(Signal::INT);
        client.finish()
    });
    assert_same("ctrl-C", &direct, &forwarded);
    let errors = String::from_utf8_lossy(&forwarded.errors);
    assert!(errors.contains("canceling statement due to user request"), "{forwarded}");
    eventually("all are gone", LIMIT, || postgres.connections() == "0");
    postgres.forwarder.stop();
}

/// A client that is killed while it waits, or takes a result, or sends one, is gone for the server too.
fn killed_clients(engine: EngineChoice) {
    let test = "postgres_forwarded::killed_clients";
    let Some(server) = Server::shared(test) else { return };
    let postgres = Postgres::new(server, "killed_clients", engine);
    let [_, forwarded] = postgres.both();
    let statements = [
        // A server that computes looks for its client only if it is told to.
        "set client_connection_check_interval = 100; select pg_sleep(1000)",
        // Far more than fits all buffers on the way.
        "copy (select repeat('x', 100000) from generate_series(1, 10000000)) to stdout",
    ];
    for statement in statements {
        let mut psql = postgres.psql(forwarded);
        for part in statement.split("; ") {
            psql.args(["--command", part]);
        }
        let client = Client::start(&mut psql, "");
        let last = statement.split("; ").last().expect("one");
        postgres.await_statement(&last.replace('\'', "_"));
        // Stopped, it takes nothing more; then the server is in the middle.
        client.signal(Signal::STOP);
        client.signal(Signal::KILL);
        assert!(!client.finish().status.success());
        eventually("the server knows", LIMIT, || postgres.connections() == "0");
    }
    // In the middle of a transaction, and of a COPY.
    postgres.ask(&postgres.database, "create table t (line text)");
    let mut psql = postgres.psql(forwarded);
    let script = format!("begin;\ncopy t from stdin;\n{}", "line\n".repeat(1 << 20));
    let (client, input) = Client::start_open(&mut psql, script);
    postgres.await_statement("copy t from stdin");
    client.signal(Signal::KILL);
    drop(input);
    assert!(!client.finish().status.success());
    eventually("the server knows", LIMIT, || postgres.connections() == "0");
    assert_eq!(postgres.ask(&postgres.database, "select count(*) from t"), "0");
    let alive = client::run(postgres.psql(forwarded).args(["-tc", "select 'alive'"]), "");
    assert_eq!(alive.successful(), "alive\n");
    postgres.forwarder.stop();
}

/// PostgreSQL's own load generator, 64 clients at a time: no transaction is lost, and money is neither
/// made nor lost.
fn many_clients(engine: EngineChoice) {
    const TRANSACTIONS: usize = 10;
    let test = "postgres_forwarded::many_clients";
    // Apart from the others, which need connections as well.
    let Some(server) = Server::start(test, &[]) else { return };
    let postgres = Postgres::new(std::sync::Arc::new(server), "many_clients", engine);
    let pgbench = |arguments: &[&str]| {
        let directory = postgres.forwarder.directory();
        let mut command = postgres.server.program("pgbench", directory);
        command.args(arguments).arg(&postgres.database);
        let outcome = client::run(&mut command, PIPELINE);
        outcome.successful();
        outcome
    };
    pgbench(&["--initialize", "--quiet", "--scale=1"]);
    let each = TRANSACTIONS.to_string();
    let common = ["--client=64", "--jobs=2", "--no-vacuum", "--transactions", &each];
    let mut transactions = 0;
    for protocol in ["simple", "extended", "prepared"] {
        let outcome = pgbench(&[&common[..], &["--protocol", protocol]].concat());
        let all = 64 * TRANSACTIONS;
        assert!(outcome.contains(&format!("processed: {all}/{all}\n")), "{outcome}");
        transactions += all;
    }
    let history = "select count(*) from pgbench_history";
    assert_eq!(postgres.ask(&postgres.database, history), transactions.to_string());
    let sums = "select (select sum(delta) from pgbench_history) = (select sum(abalance) from
        pgbench_accounts) and (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from
        pgbench_tellers)";
    assert_eq!(postgres.ask(&postgres.database, sums), "t");
    // Many statements on the way before the first answer.
    let pipelines = ["--protocol=extended", "--file=/dev/stdin"];
    pgbench(&[&common[..], &pipelines].concat());
    eventually("all are gone", LIMIT, || postgres.connections() == "0");
    postgres.forwarder.stop();
}

const PIPELINE: &str = r"
\set id random(1, 100000)
\startpipeline
select abalance from pgbench_accounts where aid = :id;
select repeat('x', 3000);
select 1;
select count(*) from generate_series(1, 100);
select repeat('y', 20000);
\endpipeline
";

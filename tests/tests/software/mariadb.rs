//! MariaDB: the `mariadb` client over the forwarder gets what it gets from the server itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ringpost::EngineChoice;
use ringpost_testkit::patience::eventually;
use ringpost_tests::on_both_engines;
use ringpost_tests::software::client::{self, Client, Outcome, assert_same};
use ringpost_tests::software::example::Forwarder;
use ringpost_tests::software::programs::{self, Needed};
use ringpost_tests::software::service::{Home, Service};
use rustix::process::Signal;

on_both_engines!(same_answers, large_data, many_connections, killed_clients);

const NEEDED: &[Needed] = &[
    Needed { program: "mariadbd", package: "mariadb-server-core" },
    Needed { program: "mariadb-install-db", package: "mariadb-server-core" },
    Needed { program: "mariadb", package: "mariadb-client-core" },
];

/// Longest wait for something that the server does by itself.
const LIMIT: Duration = Duration::from_secs(15);

/// A server, and the forwarder in front of it.
struct MariaDb {
    // Dropped in this order: the server before its directory.
    forwarder: Forwarder,
    _service: Service,
    socket: PathBuf,
    home: Home,
}

impl MariaDb {
    fn start(test: &str, engine: EngineChoice) -> Option<Self> {
        if !programs::here_or_skip(test, NEEDED) {
            return None;
        }
        let home = Home::new();
        let data = home.join("data");
        let mut install = home.command(&programs::path("mariadb-install-db"));
        install.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
        install.args(["--skip-test-db", INNODB_LOG]).arg(option("datadir", &data));
        let installed = client::run(&mut install, "");
        assert!(installed.status.success(), "{installed}");

        let socket = home.join("mariadb.sock");
        let mut command = home.command(&programs::path("mariadbd"));
        command.args(["--no-defaults", "--skip-networking", "--max-connections=200", INNODB_LOG]);
        command.args(["--max-allowed-packet=32M", "--innodb-buffer-pool-size=32M"]);
        // No test needs what it has written to outlive the machine.
        command.args(["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync"]);
        command.arg(option("datadir", &data)).arg(option("socket", &socket));
        command.arg(option("pid-file", &home.join("pid")));
        let answers = || ask(&socket, "select 1").output == b"1\n";
        let service = Service::start(&mut command, home.join("log"), answers);
        let forwarder = Forwarder::start(engine, &socket);
        Some(Self { forwarder, _service: service, socket, home })
    }

    /// One after the other: the server itself and the forwarder.
    fn both(&self) -> [&Path; 2] {
        [&self.socket, self.forwarder.path()]
    }

    /// Runs a script twice, directly and over the forwarder, each in a database of its own, and checks
    /// that the answers are the same.
    #[track_caller]
    fn same(&self, flags: &[&str], script: &str) -> Outcome {
        let [direct, forwarded] = self.both().map(|socket| {
            let fresh = "drop database if exists work; create database work charset utf8mb4";
            ask(&self.socket, fresh).successful();
            client::run(mariadb(socket).args(flags).arg("work"), script)
        });
        assert_same(&flags.join(" "), &direct, &forwarded);
        direct
    }

    /// The server's connections but the one that asks.
    fn others(&self) -> String {
        let others = "select count(*) from information_schema.processlist
            where id <> connection_id() and user = 'root'";
        ask(&self.socket, others).successful().trim_end().to_owned()
    }

    /// The connection that performs a statement which contains `part`.
    fn performing(&self, part: &str) -> Option<String> {
        let id = format!(
            "select id from information_schema.processlist
            where id <> connection_id() and info like '%{part}%'"
        );
        let id = ask(&self.socket, &id).successful().trim_end().to_owned();
        (!id.is_empty()).then_some(id)
    }
}

fn option(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

fn mariadb(socket: &Path) -> Command {
    let mut command = Command::new("mariadb");
    command.args(["--no-defaults", "--user=root", "--batch", "--max-allowed-packet=32M"]);
    command.args(["--default-character-set=utf8mb4"]).arg(option("socket", socket));
    command
}

/// What the client says to one statement, without column names.
fn ask(socket: &Path, statement: &str) -> Outcome {
    client::run(mariadb(socket).args(["--skip-column-names", "--execute", statement]), "")
}

const SCRIPT: &str = r"
create table person (id int primary key auto_increment, name varchar(50) unique, born date, photo blob);
insert into person (name, born) values ('Ada', '1815-12-10'), ('Grace', '1906-12-09'), ('이름', null);
select * from person order by id;
select id, name from person where born is null;
insert into person (name) values ('Ada');
selec 1;
select * from nowhere;
select 1/0, 0.1 + 0.2, -1 << 3, cast('x' as int), now() > '2020-01-01';
show warnings;
update person set photo = x'00ff0a27225c' where id = 1;
select hex(photo), photo is null from person order by id;
prepare find from 'select name, ? from person where id between ? and ? order by id';
set @what = 'argument', @low = 1, @high = 2;
execute find using @what, @low, @high;
set @low = 3, @high = 9;
execute find using @what, @low, @high;
deallocate prepare find;
execute find;
start transaction;
delete from person;
select count(*) from person;
rollback;
select count(*) from person;
delimiter //
create procedure several(count int)
begin
    declare i int default 0;
    while i < count do
        select i, repeat('*', i);
        set i = i + 1;
    end while;
    signal sqlstate '45000' set message_text = 'an error of our own', mysql_errno = 31001;
end//
delimiter ;
call several(5);
select sum(seq), avg(seq), group_concat(seq order by seq desc limit 5) from seq_1_to_10000;
select * from information_schema.character_sets order by 1;
explain select * from person where name = 'Ada';
kill query 999999999;
lock tables person read;
insert into person (name) values ('Linus');
unlock tables;
select 'last';
";

fn same_answers(engine: EngineChoice) {
    let Some(server) = MariaDb::start("mariadb::same_answers", engine) else { return };
    // Without --force, the client ends with the first error, and its status says so.
    for flags in [&["--force"][..], &["--force", "--compress"], &["--force", "--xml", "-vv"], &[]] {
        let direct = server.same(flags, SCRIPT);
        assert!(direct.contains("Grace"), "{direct}");
        assert_eq!(direct.contains("last"), flags.contains(&"--force"), "{direct}");
        assert_eq!(direct.status.success(), flags.contains(&"--force"), "{direct}");
    }
    let unknown = server.both().map(|socket| {
        client::run(mariadb(socket).args(["--user=nobody-like-that", "--execute", "select 1"]), "")
    });
    assert_same("an unknown user", &unknown[0], &unknown[1]);
    assert_eq!(unknown[0].status.code(), Some(1));
    server.forwarder.stop();
}

/// Results, statements and files of several MiB, and results that the client takes row by row.
fn large_data(engine: EngineChoice) {
    let Some(server) = MariaDb::start("mariadb::large_data", engine) else { return };
    let rows = "select seq, md5(seq), repeat('x', seq % 300) from seq_1_to_20000;";
    for flags in [&[][..], &["--quick"], &["--compress"]] {
        let direct = server.same(flags, rows);
        assert!(direct.status.success() && direct.output.len() > 3 << 20, "{direct}");
    }
    let direct = server.same(&["--raw"], "select repeat('abcdefgh', 2 << 20), 'end';");
    assert!(direct.status.success() && direct.output.len() > 16 << 20, "{direct}");

    let mut random = fastrand::Rng::with_seed(3);
    let mut insert = String::from("create table t (b longblob); insert into t values (x'");
    for _ in 0..(2 << 20) / 8 {
        write!(insert, "{:016x}", random.u64(..)).expect("memory");
    }
    insert += "'); select md5(b), length(b) from t; select hex(b) from t;";
    let direct = server.same(&[], &insert);
    assert!(direct.status.success() && direct.contains(&(2 << 20).to_string()), "{direct}");

    let file = server.home.join("rows.tsv");
    let text: String = (0..50_000).map(|row| format!("{row}\tname {row}\t\\N\n")).collect();
    std::fs::write(&file, &text).expect("a directory of our own");
    let load = format!(
        "create table t (id int, name varchar(30), nothing int);
        load data local infile '{}' into table t;
        select count(*), sum(id), max(name), count(nothing) from t; select * from t;",
        file.display()
    );
    let direct = server.same(&["--local-infile"], &load);
    assert!(direct.status.success() && direct.contains("1249975000"), "{direct}");
    // Over 32 MiB the server refuses, and tells.
    let direct = server.same(&["--force"], "select length(repeat('x', 40000000)); show warnings;");
    assert!(direct.contains("max_allowed_packet"), "{direct}");
    server.forwarder.stop();
}

/// Each of many clients adds to the same row, in transactions of several statements.
fn many_connections(engine: EngineChoice) {
    const CLIENTS: usize = 48;
    const ROUNDS: usize = 10;
    let Some(server) = MariaDb::start("mariadb::many_connections", engine) else { return };
    let table = "create database work; create table work.sum (value int) engine = innodb;
        insert into work.sum values (0)";
    ask(&server.socket, table).successful();
    let round = "start transaction; select value into @old from sum for update;
        update sum set value = @old + 1; commit;\n";
    let script = round.repeat(ROUNDS) + "select 'done';";
    let clients: Vec<Client> = (0..CLIENTS)
        .map(|_| Client::start(mariadb(server.forwarder.path()).arg("work"), script.as_str()))
        .collect();
    for client in clients {
        assert_eq!(client.finish().successful(), "done\ndone\n");
    }
    let sum = ask(&server.socket, "select value from work.sum");
    assert_eq!(sum.successful(), format!("{}\n", CLIENTS * ROUNDS));
    eventually("all are gone", LIMIT, || server.others() == "0");
    server.forwarder.stop();
}

/// A client that is killed while it waits or takes a result is gone for the server too. A statement can
/// be ended from another connection.
fn killed_clients(engine: EngineChoice) {
    let Some(server) = MariaDb::start("mariadb::killed_clients", engine) else { return };
    let [_, forwarded] = server.both();
    let start = |statement: &str| {
        Client::start(mariadb(forwarded).args(["--quick", "--execute", statement]), "")
    };

    let sleeping = start("select sleep(1000)");
    let mut id = None;
    eventually("it sleeps", LIMIT, || {
        id = server.performing("sleep(1000)");
        id.is_some()
    });
    let kill = format!("kill query {}", id.expect("just found"));
    assert!(ask(forwarded, &kill).status.success());
    let errors = sleeping.finish().errors;
    assert!(String::from_utf8_lossy(&errors).contains("interrupted"), "{errors:?}");

    let sleeping = start("select sleep(1001)");
    eventually("it sleeps", LIMIT, || server.performing("sleep(1001)").is_some());
    sleeping.signal(Signal::KILL);
    assert!(!sleeping.finish().status.success());
    // A server that computes looks whether its client is there every few seconds.
    eventually("the server knows", LIMIT, || server.others() == "0");

    // Far more than fits all buffers on the way; stopped, the client takes none of it.
    let taking = start("select repeat('x', 100000) from mysql.seq_1_to_1000000");
    eventually("it sends", LIMIT, || server.performing("seq_1_to_1000000").is_some());
    taking.signal(Signal::STOP);
    taking.signal(Signal::KILL);
    assert!(!taking.finish().status.success());
    eventually("the server knows", LIMIT, || server.others() == "0");
    assert_eq!(ask(forwarded, "select 'alive'").successful(), "alive\n");
    server.forwarder.stop();
}

const INNODB_LOG: &str = "--innodb-log-file-size=4M";

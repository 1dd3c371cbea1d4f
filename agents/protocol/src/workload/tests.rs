use super::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn vm(vm_name: &str) -> Vm {
    Vm {
        name: name(vm_name),
        image: Hash([1; 32]),
        argv: vec!["/bin/server".into()],
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
        user: String::new(),
        working_dir: "/".into(),
        stop_signal: String::new(),
        stop_grace_s: 10,
        cpu_millis: 500,
        memory_bytes: 128 << 20,
        mounts: vec![],
        ports: vec![PortMapping { transport: Transport::Tcp, published: 8080, guest: 80 }],
        health: None,
        restart: RestartPolicy::Always,
    }
}

fn workload() -> Workload {
    Workload {
        version: 1,
        vms: vec![vm("web")],
        volumes: vec![Volume { name: name("data"), kind: VolumeKind::Exclusive, size_bytes: 64 << 20 }],
    }
}

fn refusal(change: impl FnOnce(&mut Workload)) -> String {
    let mut w = workload();
    change(&mut w);
    w.check().unwrap_err().to_string()
}

fn mount(path: &str) -> Mount {
    Mount { volume: name("data"), path: path.into(), read_only: false }
}

#[test]
fn a_plain_workload_is_accepted_and_adds_up() {
    let w = workload();
    assert_eq!(w.check(), Ok(()));
    let needs = w.resources().unwrap();
    assert_eq!((needs.cpu_millis, needs.memory_bytes, needs.ssd_bytes), (500, 128 << 20, 64 << 20));
    assert_eq!(w.published_ports(), [PublishedPort { transport: Transport::Tcp, port: 8080 }]);
}

#[test]
fn every_impossible_workload_is_refused_by_name() {
    assert_eq!(refusal(|w| w.vms.clear()), "a workload has 1 to 16 microVMs, not 0");
    assert_eq!(refusal(|w| w.vms.push(vm("web"))), "two microVMs are named 'web': give each its own name");
    assert!(refusal(|w| w.vms[0].argv.clear()).starts_with("microVM 'web' has no command"));
    assert!(refusal(|w| w.vms[0].memory_bytes = 1).contains("asks for 1 of bytes of memory"));
    assert!(refusal(|w| w.vms[0].cpu_millis = 1).contains("allowed are 10 to 1024000"));
    assert!(refusal(|w| w.volumes[0].size_bytes = 1).contains("volume 'data' has 1 bytes"));
    assert!(refusal(|w| w.vms[0].mounts = vec![mount("/srv/../etc")]).contains("'/srv/../etc'"));
    assert!(refusal(|w| w.vms[0].mounts = vec![mount("/")]).contains("mounts '/'"));
    assert!(
        refusal(|w| {
            w.vms[0].mounts = vec![mount("/srv")];
            w.volumes.clear();
        })
        .contains("volume 'data', which is not described")
    );
    assert_eq!(
        refusal(|w| {
            w.vms[0].mounts = vec![mount("/srv")];
            let mut second = vm("second");
            second.mounts = vec![mount("/srv")];
            second.ports.clear();
            w.vms.push(second);
        }),
        "exclusive volume 'data' is mounted by two microVMs: make it shared"
    );
    assert_eq!(
        refusal(|w| {
            let mut second = vm("second");
            second.ports[0].guest = 81;
            w.vms.push(second);
        }),
        "port 8080/tcp is published twice"
    );
}

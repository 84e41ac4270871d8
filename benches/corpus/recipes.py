"""What the images of the corpus are: names, parents, steps and what a start of each reads.

A recipe is a chain of steps, one layer each, as in a Dockerfile. Steps are shell commands, but for
`DEBOOTSTRAP` and `INSTALL package...`. The images are built as Kolla builds its own: a common
base, a base for OpenStack, one for each project, and a few small layers on top.
"""

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """An image: the one below it, its own steps, the user of its processes, a start."""

    parent: str | None
    steps: tuple[str, ...]
    user: str = "root"
    start: str | None = None


RECIPES: dict[str, Recipe] = {}

# Kolla's numbers of users, which the base image makes for all services.
USERS = {
    "nova": 42436, "neutron": 42435, "glance": 42415, "keystone": 42425, "placement": 42482,
    "mysql": 42434, "rabbitmq": 42439, "memcache": 42457, "haproxy": 42454, "kolla": 42400,
}

KOLLA_START = """#!/bin/bash
set -o errexit
source /usr/local/bin/kolla_extend_start
CMD=$(cat /run_command 2>/dev/null || echo "$@")
exec ${CMD}
"""

# Debian's packages refuse Kolla's numbers for system users without it.
SYSTEM_USERS = "echo LAST_SYSTEM_UID=42999 >> /etc/adduser.conf"

NO_DOCUMENTATION = (
    "printf 'path-exclude=/usr/share/doc/*\\npath-include=/usr/share/doc/*/copyright\\n"
    "path-exclude=/usr/share/man/*\\npath-exclude=/usr/share/info/*\\n' > /etc/dpkg/dpkg.cfg.d/nodoc; "
    "rm -rf /usr/share/man /usr/share/info; "
    "find /usr/share/doc -type f ! -name copyright -delete; "
    "find /usr/share/doc -type d -empty -delete"
)


def put(path: str, text: str, mode: str) -> str:
    """A step that writes a file."""
    return f"mkdir -p $(dirname {path}); cat > {path} <<'END_OF_FILE'\n{text}\nEND_OF_FILE\nchmod {mode} {path}"


def extended(service: str, user: str) -> list[str]:
    """The last layers of Kolla's images, which are small."""
    script = f"#!/bin/bash\n[[ -d /var/log/kolla/{service} ]] || mkdir -p /var/log/kolla/{service}\n"
    owner = f"usermod -a -G kolla {user} && mkdir -p /var/log/kolla/{service} /var/lib/{service} && "
    owner += f"chown -R {user}:kolla /var/log/kolla/{service} && chmod 2755 /var/log/kolla/{service}"
    return [put("/usr/local/bin/kolla_extend_start", script, "0755"), owner]


def python(body: str) -> str:
    """A start that is a Python program."""
    return textwrap.dedent(body).strip()


def image(name: str, parent: str | None, *steps: str, user: str = "root", start: str | None = None):
    """Adds a recipe."""
    RECIPES[name] = Recipe(parent, steps, user, start)


def service(name, parent, packages, user, *, before=(), start=None):
    """Adds the image of a service."""
    image(name, parent, *before, "INSTALL " + packages, *extended(name, user), user=user, start=start)


image("debian", None, "DEBOOTSTRAP",
      start="bash --version; perl -e 'print qq(perl\\n)'; dpkg -l | wc -l")

image(
    "base", None, "DEBOOTSTRAP", NO_DOCUMENTATION,
    "INSTALL dumb-init curl sudo procps iproute2 iputils-ping lsof net-tools netcat-openbsd less "
    "socat logrotate tzdata hostname psmisc libcap2-bin ca-certificates openssl bzip2 xz-utils gnupg "
    "vim-tiny locales python3-minimal",
    " && ".join(f"groupadd -g {number} {name} && useradd -M -s /usr/sbin/nologin -d /var/lib/{name} "
                f"-u {number} -g {number} {name}" for name, number in USERS.items()),
    put("/usr/local/bin/kolla_start", KOLLA_START, "0755"),
    "touch /usr/local/bin/kolla_extend_start && chmod 755 /usr/local/bin/kolla_extend_start && "
    "mkdir -p /var/log/kolla /openstack && chown :kolla /var/log/kolla && chmod 2775 /var/log/kolla",
)

OSLO = ("cache concurrency config context db i18n log messaging metrics middleware policy privsep "
        "reports rootwrap serialization service upgradecheck utils versionedobjects vmware")

image(
    "openstack-base", "base",
    "INSTALL python3 python3-pkg-resources python3-pip-whl python3-setuptools crudini libpcre3 libxml2 "
    "libxslt1.1 python3-pymysql python3-sqlalchemy python3-alembic python3-eventlet python3-memcache "
    "python3-pymemcache python3-requests python3-cryptography python3-lxml python3-yaml",
    "INSTALL " + " ".join(f"python3-oslo.{name}" for name in OSLO.split())
    + " python3-keystoneauth1 python3-keystonemiddleware python3-osprofiler python3-castellan "
    "python3-etcd3gw python3-tooz python3-taskflow python3-stevedore python3-tenacity "
    "python3-pastedeploy python3-pastescript python3-routes python3-webob python3-cachetools "
    "python3-ldappool uwsgi-plugin-python3 dbconfig-common",
    "INSTALL apache2 libapache2-mod-wsgi-py3",
    "INSTALL python3-openstackclient python3-openstacksdk python3-novaclient python3-neutronclient "
    "python3-glanceclient python3-cinderclient python3-heatclient python3-swiftclient "
    "python3-barbicanclient python3-os-brick",
    "rm -rf /var/www/html /etc/apache2/sites-enabled/000-default.conf && mkdir -p /var/www/html && "
    "sed -i 's/^Listen 80/#&/' /etc/apache2/ports.conf",
)

for project, packages in {"nova": "nova-common", "neutron": "neutron-common",
                          "glance": "glance-common", "keystone": "keystone",
                          "placement": "placement-common"}.items():
    image(f"{project}-base", "openstack-base", "INSTALL " + packages, *extended(project, project))

NOVA = """
import nova.cmd.{command}
from nova import config, objects
config.parse_args(["nova"], default_config_files=["/etc/nova/nova.conf"])
objects.register_all()
"""

service("nova-api", "nova-base", "nova-api", "nova", start=NOVA.format(command="api") + python("""
    from nova.api.openstack.compute import APIRouterV21
    import nova.wsgi
    print(len(APIRouterV21().map.matchlist), "routes")"""))
service("nova-conductor", "nova-base", "nova-conductor", "nova",
        start=NOVA.format(command="conductor") + "import nova.conductor.manager; print('ready')")
service("nova-scheduler", "nova-base", "nova-scheduler", "nova",
        start=NOVA.format(command="scheduler") + "import nova.scheduler.manager; print('ready')")
service("neutron-server", "neutron-base", "neutron-server neutron-plugin-ml2", "neutron",
        start="import neutron.server, neutron.plugins.ml2.plugin; print('ready')")
service("glance-api", "glance-base", "glance-api python3-glance-store qemu-utils", "glance",
        start="import glance.cmd.api, glance_store; print('ready')")
service("placement-api", "placement-base", "placement-api", "placement",
        start="import placement.wsgi, placement.deploy; print('ready')")
service("mariadb", "base", "mariadb-server mariadb-backup galera-4 rsync", "mysql",
        before=[SYSTEM_USERS])
service("rabbitmq", "base", "rabbitmq-server", "rabbitmq", before=[SYSTEM_USERS])
service("memcached", "base", "memcached", "memcache", before=[SYSTEM_USERS])
service("haproxy", "base", "haproxy", "haproxy", before=[SYSTEM_USERS])

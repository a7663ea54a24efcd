#!/bin/sh
# After an installation, or a new version over an older one. In a root that does
# not run, such as an image that is being built, the service is only enabled.
set -e
systemctl enable outguard-agent.service
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl restart systemd-modules-load.service || true # a container has none of its own
	systemctl restart outguard-agent.service # links, maps and counters outlive it: no gap
	if lsm=$(cat /sys/kernel/security/lsm 2>/dev/null); then
		case ",$lsm," in
		*,bpf,*) ;;
		*) echo "outguard-agent: bpf is not among the security modules that run ($lsm): add lsm=$lsm,bpf to the kernel's command line" >&2 ;;
		esac
	fi
fi

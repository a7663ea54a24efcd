#!/bin/sh
# Before the package goes, and not when a new version takes its place: dpkg says
# "remove", rpm how many versions stay.
set -e
case ${1:-remove} in
remove | 0)
	systemctl disable -q outguard-agent.service
	if [ -d /run/systemd/system ]; then
		systemctl kill --signal=TERM outguard-agent.service || true # it says so to the host
		sleep 0.5
		systemctl stop outguard-agent.service
	fi
	rm -rf /sys/fs/bpf/outguard # links that outlive the agent would go on without anybody
	;;
esac

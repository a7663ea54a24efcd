// Package decide turns a finding into a decision by a playbook. It is pure:
// what it answers depends on its arguments alone, the time among them.
//
// A playbook is a YAML file of at most 1 MiB:
//
//	version: 1
//	dry_run: false                  # true: nothing is ordered
//	labels:                         # each a set of VMs, by globs over names and UUIDs
//	  production: ["web-*", "db-*"]
//	alerts:                         # whom the step alert tells
//	  - name: pager
//	    webhook: https://host/path  # or command: [/absolute/path, arguments]
//	    token_file: /path           # Authorization: Bearer
//	    timeout: 10s                # of one attempt
//	    gather: 2s                  # to wait for more findings, which are counted
//	limits:                         # of one VM and of all; these are the defaults
//	  alert: {vm: 12/1h, total: 240/1h}
//	  capture: {vm: 4/1h, total: 60/1h}
//	  revert: {vm: 2/1h, total: 60/1h}
//	rules:
//	  - name: stop-and-capture      # unique; orders and findings show it
//	    match:                      # all that is given must hold; {} matches all
//	      host: false               # true: the host's own findings, and no VM's
//	      engine: tsem              # glob
//	      rule: "tsem/*"            # glob over the finding's rule
//	      severity: high            # at least: info, low, medium, high, critical
//	      technique: "T1059*"       # glob over the ATT&CK id
//	      vm: "web-*"               # glob over the domain's name or its UUID
//	      label: production         # one of the labels
//	      container: "shop-*"       # glob over its name, else its cgroup's id
//	      program: "/usr/bin/*"     # glob over the path of what acted
//	      repeated: {times: 5, within: 1m}  # so many of one VM that match all else
//	    steps: [log, alert, pause, capture]
//	    alert: [pager]              # default: all of alerts
//	    state: clean                # what revert goes back to; default: what was saved last before
//	    once_per: run               # run (default), session, vm or event
//	    cooldown: 10m               # default 0: none
//	    dry_run: false              # true: on trial
//
// The first rule that matches decides, also where it then holds back: its
// steps are ordered once per run of the VM (from its start or resume to its
// next stop), per session of its agent, per VM, or for each event, and not
// again within the cooldown. What was held back is counted. A rule whose
// repetition has not come, and one on trial, do not decide: the next is asked.
// A glob's * stands for any text and ? for one byte; nothing else is special.
//
// The steps: log; alert; kill and kill-tree end in the guest the process that it
// is about, freeze stops its cgroup, and all three must come before pause; isolate takes the network links down; pause stops all
// vCPUs; capture takes memory and disks, must follow pause and come before
// revert and reset; revert goes back to a saved state; reset; destroy and resume, of which one may come last. No matching
// rule, no step.
package decide

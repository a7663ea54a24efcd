// Package scenario plays whole stories on real guests: scripts in
// testdata/*.txtar drive the built binaries, a guest booted through libvirt,
// visitors and an attacker.
//
// The scripts are played one after the other, by name, in one world: what a
// script leaves, the next one finds. So one boot serves many. A script that
// needs a guest of its own defines it and removes it.
//
// Commands beside testscript's own:
//
//	install                         install the product and start nothing
//	monitor start|stop|kill         outguardd, as its own user; kill is SIGKILL
//	guest define NAME [WORD...]     a guest, with words for its kernel's command line
//	guest start|stop|pause|resume|remove NAME
//	guest stall|unstall NAME        its vhost-device-vsock stands still, and goes on
//	[!] guest state NAME WORD [WAIT]   libvirt's word for it: running, paused, "shut off"
//	enroll NAME [TRANSPORT]         outguard enroll, and serve the channel that it gave; sets
//	                                $SOCKET to its socket on the host
//	[!] root NAME COMMAND [WAIT]    run a line of shell as root in the guest; what it prints
//	                                is in the file root.out
//	client SOCKET FILE              connect to a socket, write the file, and stay
//	client SOCKET leave             and be gone
//	console NAME TEXT [WAIT]        wait for text on the guest's console
//	visit NAME [ROUNDS [unheard]]   the service's normal traffic, answers checked, until it is
//	                                judged; unheard: nobody is there to hear of it
//	heard NAME                      wait until all that the guest has done is judged; by way
//	                                of two commands of root's, which a sealed model minds
//	knock NAME PATH                 ask for a page, whatever becomes of the answer
//	learn NAME                      open the model, visit until it is quiet, seal it
//	attack NAME [called]            the exploit; called: it must have reached the attacker.
//	                                Sets $ATTACK_PATH and $ATTACK_SHA256
//	capture NAME [WAIT]             wait for a bundle not seen before; sets $BUNDLE
//	digests NAME FILE TYPE [absent] hold the record's digests against what outguard-versions printed
//	hooks NAME FILE                 hold the record against what outguard-hooks printed
//	acted NAME FILE                 hold the record against what outguard-poke acted printed
//	until WAIT REGEXP PROGRAM [ARG...] run a program until its output matches
//
// $FILES holds the files that every guest's image has.
// `exec outguard ...` is this world's command line. WAIT is a Go duration. On
// failure, consoles and the monitor's log go to the test's artifacts.
//
// OUTGUARD_KERNEL says which stock kernel the guests run: 6.1, 6.12 or 7.2, 6.12
// if it says nothing. A line of a script that depends on it begins with
// [kernel:6.1] or [!kernel:6.1].
//
// A guest is called $LAB-something: two runs with different OUTGUARD_LAB have
// different guests, directories and installations, and can go on side by side.
package scenario

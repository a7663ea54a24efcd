// Package image builds guests' disks: an initial file system that loads the
// stock kernel's modules and mounts /dev/vda, and an ext4 root with busybox,
// the agent and a small web service.
//
// A build is a function of its inputs: the same files and the same kernel give
// the same bytes, and a finished image is kept under the hash of what went in.
//
//	<dir>/<hash>/vmlinuz      the stock kernel
//	<dir>/<hash>/initrd       newc archive, not compressed: unpacking costs an emulated guest more than reading
//	<dir>/<hash>/root.qcow2   the root's file system, whole disk, no partitions
//
// The guest's kernel command line steers what runs in it; see files/rcS.
package image

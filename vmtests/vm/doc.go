// Package vm runs guests of vmtests/image through libvirt, for the scenarios
// and the demo, and cleans up after them.
//
// A Lab is what this machine offers, each thing chosen by proof and with the
// reason kept: the accelerator (KVM only where a stock kernel is seen to boot
// under it), the vsock (the kernel's, or vhost-device-vsock), libvirtd (started
// only where none runs). A Guest is one domain that the lab defined; its disk,
// kernel and sockets stand in directories that QEMU's user can reach.
//
// Domains are driven by virsh, not by the product's own libvirt client: what is
// tested does not test itself.
package vm

// Package domain does what Outguard needs done to libvirt domains: it finds
// them, stops and resumes them, captures memory and disks, watches their life
// and provisions them. It is the only importer of go-libvirt.
//
// A domain is named by libvirt's UUID everywhere; names are for people. Every
// effect is checked: Pause returns when libvirt says that the domain is
// paused, not when it has been asked.
package domain

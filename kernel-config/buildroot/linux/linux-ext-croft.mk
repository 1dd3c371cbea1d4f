################################################################################
#
# Read inside linux.mk, before its rules are made: the only place where the
# kernel's dependencies can still be taken back.
#
################################################################################

ifeq ($(BR2_CROFT_KERNEL_ONLY),y)
LINUX_DEPENDENCIES := $(filter-out host-kmod host-zstd,$(LINUX_DEPENDENCIES))
endif

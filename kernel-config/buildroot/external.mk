################################################################################
#
# The same kernel configuration as `cargo xtask kernel` makes.
#
# Croft's kernels are fragments over allnoconfig: KCONFIG_ALLCONFIG=<fragments>
# make allnoconfig. Buildroot has no setting for that. It merges fragments into a
# base file as text and runs olddefconfig, so every option that a fragment makes
# visible takes its default, mostly y. No base file cures this: an allnoconfig
# made without the fragments doesn't know those options either, and one made with
# them would be a generated copy to keep in step.
#
# But Buildroot makes its base by running `make $(LINUX_KCONFIG_DEFCONFIG)`. Here
# that becomes allnoconfig with the fragments, after which merging the same
# fragments and olddefconfig find nothing left to change. The variable is read
# when the recipe runs, so setting it here, after linux.mk, is in time.
#
################################################################################

ifeq ($(BR2_CROFT_LINUX_ALLNOCONFIG),y)

CROFT_LINUX_ALLCONFIG = $(BUILD_DIR)/croft-linux.config

$(CROFT_LINUX_ALLCONFIG): $(LINUX_KCONFIG_FRAGMENT_FILES)
	$(Q)mkdir -p $(@D)
	$(Q)cat $(LINUX_KCONFIG_FRAGMENT_FILES) > $@

$(LINUX_DIR)/$(LINUX_KCONFIG_STAMP_DOTCONFIG): $(CROFT_LINUX_ALLCONFIG)

LINUX_KCONFIG_DEFCONFIG = KCONFIG_ALLCONFIG=$(CROFT_LINUX_ALLCONFIG) allnoconfig

# Kconfig drops what it can't grant without a word. `cargo xtask kernel` fails
# then; here it is a warning, since linux-menuconfig is for trying things out.
define CROFT_LINUX_CHECK_CONFIG
	$(Q)grep -hE '^(CONFIG_|# CONFIG_.* is not set)' $(LINUX_KCONFIG_FRAGMENT_FILES) | \
	while read -r line; do \
		symbol=`echo "$$line" | sed -E 's/^(# )?(CONFIG_[A-Za-z0-9_]+).*/\2/'`; \
		case "$$line" in \
		\#*) grep -q "^$$symbol=" $(@D)/.config || continue ;; \
		*) if grep -qxF -- "$$line" $(@D)/.config; then continue; fi ;; \
		esac; \
		echo "croft: requested but not in the kernel configuration: $$line" >&2; \
	done
endef
LINUX_POST_CONFIGURE_HOOKS += CROFT_LINUX_CHECK_CONFIG

endif

# A kernel needs the compiler but none of its libraries. With the distribution's
# compiler as toolchain Buildroot would copy all of /usr.
ifeq ($(BR2_CROFT_KERNEL_ONLY),y)
TOOLCHAIN_EXTERNAL_INSTALL_SYSROOT_LIBS =
TOOLCHAIN_EXTERNAL_INSTALL_TARGET_LIBS =
TOOLCHAIN_EXTERNAL_INSTALL_TARGET_LDD =
TOOLCHAIN_EXTERNAL_FIXUP_PRETTY_PRINTER_LOADER =
endif

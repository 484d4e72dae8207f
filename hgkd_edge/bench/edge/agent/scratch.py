"""The scratch folder of a job on the device: `~/.cache/hgkd-edge/jobs/<job id>/`.

Its name comes from the job's digest, so that a second connection finds what the first one built.
"""

import glob
import json
import os
import shutil
import time

from .wire import heed_interruption, send

# A folder that a broken-off session left and nobody came back for.
_FORGOTTEN_S = 7 * 24 * 3600.0


class Scratch(object):
    """One job's folder, held by one agent at a time.

    Args:
        job: Hex digest of the job.
        resume: Keep what is there; otherwise begin with an empty folder.
        patience_s: How long to wait for an agent that believes its line alive.
    """

    def __init__(self, job, resume, patience_s):
        if not job or any(letter not in "0123456789abcdef" for letter in job):
            raise RuntimeError("the job id is not a hex digest")
        self.home = os.path.join(jobs_folder(), job)
        self.owner = os.path.join(self.home, "owner.json")
        self.resume = resume
        self.patience_s = patience_s
        self.held = False

    def open(self):
        """Take the folder; waits for, or ends, an earlier agent of the same job.

        Raises:
            RuntimeError: Somebody with a live connection is measuring the same job.
        """
        forget_old()
        self._wait_for_owner()
        if not self.resume:
            shutil.rmtree(self.home, ignore_errors=True)
        os.makedirs(self.home, mode=0o700, exist_ok=True)
        self.mark("live")
        self.held = True
        return self.home

    def mark(self, state):
        """Say who holds the folder: `live`, or `dropped` when its connection is gone."""
        with open(self.owner + ".tmp", "w") as file:
            json.dump({"pid": os.getpid(), "state": state}, file)
        os.rename(self.owner + ".tmp", self.owner)

    def release(self, keep):
        """Give the folder up; removed unless a later connection is to find it."""
        if not self.held:  # another agent's: not ours to touch
            return
        if keep:
            try:
                os.remove(self.owner)
            except OSError:
                pass
        else:
            shutil.rmtree(self.home, ignore_errors=True)

    def has_build(self):
        """Whether there is anything that a later connection could pick up."""
        return bool(glob.glob(os.path.join(glob.escape(self.home), "*.plan.json")))

    def asked_to_stop(self):
        """Whether a newer session wants this folder."""
        return os.path.exists(os.path.join(self.home, "stop"))

    def _wait_for_owner(self):
        """Wait for the end of the process that holds the folder, not only for its last file."""
        owner = self._owner()
        start = told = time.monotonic()
        while owner is not None and alive(owner["pid"]):
            heed_interruption()
            waited = time.monotonic() - start
            if time.monotonic() >= told:
                send("waiting", reason="an earlier session is still at work on this device")
                told = time.monotonic() + 5
            latest = self._owner()
            if latest is not None and latest["state"] == "live":
                # It may be one whose network is dead: it will know within `silence_s`.
                if waited > self.patience_s:
                    raise RuntimeError("another session is measuring this model on this device")
            elif not self.resume:
                if waited > 20 + self.patience_s:
                    raise RuntimeError("an earlier session on this device does not end")
                if os.path.isdir(self.home):
                    open(os.path.join(self.home, "stop"), "w").close()
            time.sleep(0.2)

    def _owner(self):
        """Who holds the folder, dead or alive; None when nobody does."""
        try:
            with open(self.owner) as file:
                owner = json.load(file)
            return {"pid": int(owner["pid"]), "state": owner["state"]}
        except (OSError, ValueError, KeyError):
            return None


def alive(pid):
    """Whether this process is an agent that still runs (numbers of dead ones are reused)."""
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            return b"hgkd_agent" in file.read()
    except OSError:
        return False


def jobs_folder():
    """Where scratch folders live."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "hgkd-edge", "jobs")


def forget_old():
    """Remove folders untouched for a week."""
    base = jobs_folder()
    for name in os.listdir(base) if os.path.isdir(base) else []:
        path = os.path.join(base, name)
        try:
            if time.time() - os.path.getmtime(path) > _FORGOTTEN_S:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue

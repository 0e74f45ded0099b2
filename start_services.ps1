<#
.SYNOPSIS
Start the model server and its web workers on Windows, show their state, or stop them.
.DESCRIPTION
Without -Stop or -Status: creates the virtual environment .venv if it is missing, installs requirements.txt
into it, and runs service_manager.py, which starts, watches, restarts and stops everything. Ctrl-C stops it
cleanly. As a scheduled task or a service: docs\windows.md.
.PARAMETER Workers
Number of web workers; "2-8" scales it with the load, from 2 to 8.
.PARAMETER BasePort
The first worker's port; others get the next ports, except the model server's own.
.PARAMETER SrcDir
Folder with modelServer.py and app.py.
.PARAMETER Sessions
Start the process of sessions too.
.PARAMETER Stop
Stop the processes of another run of this script, and wait until they have ended. Exit code 1 if none runs.
.PARAMETER Status
Show the processes of another run of this script. Exit code 1 if none runs.
.PARAMETER Help
Show this text.
.EXAMPLE
.\start_services.ps1 -Workers 3 -BasePort 5000
.EXAMPLE
.\start_services.ps1 -Status
.EXAMPLE
.\start_services.ps1 -Stop
#>
[CmdletBinding(DefaultParameterSetName = "Start")]
param(
    [Parameter(ParameterSetName = "Start")] [ValidatePattern("^\d+(-\d+)?$")] [string] $Workers = "2",
    [Parameter(ParameterSetName = "Start")] [ValidateRange(1, 65535)] [int] $BasePort = 5000,
    [Parameter(ParameterSetName = "Start")] [string] $SrcDir = "src",
    [Parameter(ParameterSetName = "Start")] [switch] $Sessions,
    [Parameter(ParameterSetName = "Stop", Mandatory = $true)] [switch] $Stop,
    [Parameter(ParameterSetName = "Status", Mandatory = $true)] [switch] $Status,
    [Parameter(ParameterSetName = "Help", Mandatory = $true)] [switch] $Help
)

$ErrorActionPreference = "Stop"

if ($Help) {
    Get-Help $PSCommandPath -Detailed
    exit 0
}

$environment = Join-Path $PSScriptRoot ".venv"
$python = Join-Path $environment "Scripts\python.exe"

$manager = Join-Path $PSScriptRoot "service_manager.py"

if ($Stop -or $Status) {
    if (-not (Test-Path $python)) {
        Write-Error "Nothing was started from here: there is no virtual environment $environment." -ErrorAction Continue
        exit 1
    }
    & $python $manager $(if ($Stop) { "stop" } else { "status" })
    exit $LASTEXITCODE
}

if (-not (Test-Path $python)) {
    Write-Host "Creating the virtual environment $environment"
    # The launcher chooses among installed versions; without it, use the python on the path.
    if (Get-Command py -ErrorAction SilentlyContinue) {
        & py -3 -m venv $environment
    } else {
        & python -m venv $environment
    }
    if ($LASTEXITCODE -ne 0) {
        Write-Error "Could not create the virtual environment; install Python 3.10 or newer." -ErrorAction Continue
        exit 1
    }
}

& $python -m pip install --quiet --requirement (Join-Path $PSScriptRoot "requirements.txt")
if ($LASTEXITCODE -ne 0) {
    Write-Error "Could not install the packages in requirements.txt; see the lines above." -ErrorAction Continue
    exit 1
}

# The supervisor handles Ctrl-C itself: this script waits for it and passes its exit code on.
$more = @()
if ($Sessions) {
    $more += "--sessions"
}
& $python $manager --workers $Workers --port $BasePort --src-dir $SrcDir @more
exit $LASTEXITCODE

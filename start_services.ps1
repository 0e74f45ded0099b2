<#
.SYNOPSIS
Start the model server and its web workers on Windows, show how they are, or stop them.
.DESCRIPTION
Without -Stop or -Status: makes the virtual environment .venv where there is none, installs requirements.txt
into it, and runs service_manager.py, which starts, watches, restarts and stops everything. Ctrl-C stops it
cleanly. As a scheduled task or a service: docs\windows.md.
.PARAMETER Workers
How many web workers to run; "2-8" lets their number follow the load, from 2 to 8.
.PARAMETER BasePort
The first worker's port; the next get the next, leaving out the model server's own.
.PARAMETER SrcDir
The folder with modelServer.py and app.py.
.PARAMETER Stop
Stop what another run of this script has started, and wait until all of it has ended. Exit code 1 where nothing
runs.
.PARAMETER Status
Show the processes that another run of this script has started. Exit code 1 where nothing runs.
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
        Write-Error "There is no virtual environment $environment, so nothing was started from here." -ErrorAction Continue
        exit 1
    }
    & $python $manager $(if ($Stop) { "stop" } else { "status" })
    exit $LASTEXITCODE
}

if (-not (Test-Path $python)) {
    Write-Host "Making the virtual environment $environment"
    # The launcher chooses among installed versions; without it, the python on the path is taken.
    if (Get-Command py -ErrorAction SilentlyContinue) {
        & py -3 -m venv $environment
    } else {
        & python -m venv $environment
    }
    if ($LASTEXITCODE -ne 0) {
        Write-Error "No virtual environment could be made: is Python 3.10 or newer installed?" -ErrorAction Continue
        exit 1
    }
}

& $python -m pip install --quiet --requirement (Join-Path $PSScriptRoot "requirements.txt")
if ($LASTEXITCODE -ne 0) {
    Write-Error "The packages in requirements.txt could not be installed." -ErrorAction Continue
    exit 1
}

# The supervisor handles Ctrl-C itself: this script waits for it and passes its exit code on.
& $python $manager --workers $Workers --port $BasePort --src-dir $SrcDir
exit $LASTEXITCODE
